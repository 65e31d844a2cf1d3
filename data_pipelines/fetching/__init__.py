"""From the web to a disk: what to fetch, how, and whom to trust."""
