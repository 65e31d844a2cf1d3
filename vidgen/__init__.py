"""Text-to-video models trained from scratch in JAX."""
