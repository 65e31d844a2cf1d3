"""What the loop is made of, in trees: the update, places of arrays, checkpoints, reports."""
