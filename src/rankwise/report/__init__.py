"""Stage 6: a run folder -> tables. Reads files only; never imports torch."""
