"""Turns a run folder into tables, figures, pages and cards. Never imports torch."""
