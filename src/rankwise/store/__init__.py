"""Bytes on disk: atomic files, base weights, adapter folders."""
