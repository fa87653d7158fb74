"""The command line, and what people see on a terminal."""
