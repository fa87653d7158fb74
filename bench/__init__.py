"""Measurements, each a command: `python bench/NAME.py`."""
