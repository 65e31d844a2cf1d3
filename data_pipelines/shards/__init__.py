"""Data sets on disk: ArrayRecord shards in the layout of TFDS, with digests; fast, remote reads."""
