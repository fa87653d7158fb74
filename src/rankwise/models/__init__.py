"""Base models: lookup, file formats, and one module per model family."""
