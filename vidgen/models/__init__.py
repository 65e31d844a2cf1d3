"""Models: single-device modules that see arrays and plain keyword arguments."""
