"""The commands as functions, one module per command."""
