"""Latent diffusion: the flow, the frozen encoders around it, prompts, and the sampling loop."""
