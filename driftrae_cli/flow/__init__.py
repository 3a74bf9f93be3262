"""Flow matching between data (t = 0) and noise (t = 1): path, solvers, guidance."""
