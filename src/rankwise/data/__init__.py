"""Data: files, folders or the Hub, as checked texts and labels."""
