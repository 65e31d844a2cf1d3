"""From shards to batches: which clips a step takes, in which bucket, and how they are read."""
