"""Weights outside of a run: files and their digests, names and layouts, import and export."""
