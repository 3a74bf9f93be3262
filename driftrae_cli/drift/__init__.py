"""The drifting field and the objective made of it. Pure functions on tensors."""
