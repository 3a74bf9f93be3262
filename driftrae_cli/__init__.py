"""driftrae: one-step generators from RAE flow models by drifting (Drift-RAE, arXiv 2606.15553)."""

__version__ = "0.1.0"
