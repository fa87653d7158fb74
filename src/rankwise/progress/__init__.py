"""Displays of a long job: on a terminal, in a notebook, and as lines of a log."""
