"""Base models: where they come from, their files, and one module for each family."""
