"""Statistics of latent spaces and trajectories. Pure functions on tensors."""
