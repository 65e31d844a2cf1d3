"""What a supervisor says to the person at the terminal."""

import sys


def say(text: str) -> None:
    """Writes a message at once."""
    try:
        sys.stderr.write(f"launch: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # a terminal that is gone is no reason to stop
