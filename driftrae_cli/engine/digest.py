"""Names for what can be written as JSON, and for networks: equal content, equal name."""

import hashlib
import json
from typing import Any

from torch import nn


def digest_of(plain: Any) -> str:
    """SHA-256 of something JSON can write; the order of keys does not count."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def weights_digest(module: nn.Module, config: Any = None) -> str:
    """SHA-256 of a network's weights as float32 and its shape, whatever file they are in."""
    digest = hashlib.sha256(json.dumps(config or {}, sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
