"""Results to look at: curves, sheets of frames, latents decoded beside their originals, a page."""
