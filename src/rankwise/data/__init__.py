"""Loading and validation of texts and labels from files, folders or the Hub."""
