"""Encoders with the weights of a state as others publish it, for tests against theirs."""

from driftrae_cli.models.keymaps import encoder_state, family_of
from driftrae_cli.models.weights import load_strict


def load_encoder(encoder, state):
    """Load an encoder under the names of transformers (version 4 or 5) or timm."""
    load_strict(encoder.vit, encoder_state(state, family_of(state)), "encoder")
