"""Work on a Ray cluster: sweeps, searches and predictions. It needs the extra `rankwise[ray]`."""
