"""A run on several machines: one supervisor each, of which one leads; standard library only."""
