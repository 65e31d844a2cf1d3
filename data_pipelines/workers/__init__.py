"""Child processes that can do nothing but decode, and calls that may never come back."""
