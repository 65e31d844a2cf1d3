"""Command lines of the data commands, and where commands write."""
