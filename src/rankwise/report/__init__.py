"""A run folder -> tables, figures, pages and cards. Reads files only; never imports torch."""
