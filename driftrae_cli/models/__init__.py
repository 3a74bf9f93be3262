"""Networks: DiT-DH, pixel decoder, encoder, autoencoder, one-step generator; their weights."""
