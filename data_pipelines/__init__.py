"""From files to NumPy batches: nothing here imports JAX or vidgen."""
