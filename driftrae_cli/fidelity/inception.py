"""Inception features as the published evaluators compute them, on plain weights.

The network is torch-fidelity's port of the TensorFlow graph of 2015-12-05, which FID, sFID and
Inception score are defined on. It is imported when used: that takes seconds.

Legend: B pictures, H, W their size, F pool features, S spatial features, K classes.
"""

import io
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from driftrae_cli.errors import NumericsError, WeightsError, some

POOL_FEATURES = 2048
SPATIAL_FEATURES = 17 * 17 * 7
_SPATIAL_CHANNELS = 7
PUBLISHED_SHA256 = "6726825d"  # beginning, of the file that torch-fidelity downloads
_SHOWN = 3  # names of each kind in a message
_TOGETHER = 8  # pictures on a CPU: what layers hand on stays in its cache


@dataclass(frozen=True)
class InceptionFeatures:
    """What Inception says of pictures, float32 on its device.

    Attributes:
        pool: [B, 2048], for FID, precision and recall.
        spatial: [B, 2023], for sFID: positions by rows and columns, the 7 channels together.
        logits: [B, 1008] without bias, for the Inception score.
    """

    pool: Tensor
    spatial: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Inception:
    """The network with its weights; `load` makes one.

    Attributes:
        network: torch-fidelity's, in eval mode, without gradients.
        device: where it runs.
    """

    network: nn.Module
    device: torch.device

    @staticmethod
    def load(path: Path, device: torch.device) -> "Inception":
        """Read weights in torch-fidelity's layout, as plain tensors, all of them.

        Raises:
            WeightsError: missing, damaged, not plain tensors, or of another network.
        """
        network = _network(path, _plain_tensors(path)).to(device)
        if device.type == "cpu":  # a third less time
            network = network.to(memory_format=torch.channels_last)
        return Inception(network, device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> InceptionFeatures:
        """Features of [B, 3, H, W] uint8 RGB pictures of any size, resized as TensorFlow 1 did.

        `spatial` is what the ADM evaluator reads from `mixed_6/conv:0`: the graph's blocks are
        mixed, mixed_1, … mixed_10, which torch-fidelity calls Mixed_5b, 5c, 5d, 6a, … 7c, so
        mixed_6 is Mixed_6d, and a block's own `conv` is its 1x1 branch after the ReLU (`tower…`
        are the others). Of its 192 channels the first 7 count, in TensorFlow's order of axes.

        Raises:
            NumericsError: features that are not finite.
        """
        seen: list[Tensor] = []
        branch = self.network.get_submodule("Mixed_6d.branch1x1")
        hook = branch.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            # A caller may generate in bf16. TF32, which would hurt as much, is off for the process.
            with torch.autocast(self.device.type, enabled=False):
                together = _TOGETHER if self.device.type == "cpu" else max(1, len(images))
                found = [self.network(part.to(self.device)) for part in images.split(together)]
        finally:
            hook.remove()
        pool, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
        spatial = torch.cat([part[:, :_SPATIAL_CHANNELS] for part in seen])
        spatial = spatial.permute(0, 2, 3, 1).flatten(1)
        if not torch.isfinite(logits).all():
            raise NumericsError("Inception: the features are not finite; check its weights")
        return InceptionFeatures(pool, spatial, logits)


def published_url() -> str:
    """Where the published weights are; the name ends in the beginning of their SHA-256."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


def _plain_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, read without running what is in the file."""
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; --inception-weights takes a .pth file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other formats, which the error tells better
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path}: damaged, or more than plain tensors, so it stays closed; Inception's "
            "weights are torch-fidelity's weights-inception-2015-12-05-….pth"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(f"{path}: holds no table of tensors, so these are not Inception's")
    return {str(name): tensor for name, tensor in state.items()}


def _network(path: Path, state: dict[str, Tensor]) -> nn.Module:
    """torch-fidelity's network with checked weights.

    Its constructor reads a file without PyTorch's restriction: it is given an empty one.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_args: object, **_options: object) -> None:
            """Later, and with what was read safely."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        network: nn.Module = Unloaded("inception", ["2048", "logits_unbiased"], nothing)
    _check(path, state, network.state_dict())
    nn.Module.load_state_dict(network, {n: _float32(t) for n, t in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _check(path: Path, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    problems = {
        "missing": wanted.keys() - state.keys(),
        "not expected": state.keys() - wanted.keys(),
        "of another shape": {
            f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted.keys() & state.keys()
            if state[name].shape != wanted[name].shape
        },
    }
    found = [
        f"{some(sorted(names), _SHOWN)} {problem}" for problem, names in problems.items() if names
    ]
    if found:
        raise WeightsError(
            f"{path}: not Inception in torch-fidelity's layout: {'; '.join(found)}.\n"
            "Give its weights-inception-2015-12-05-….pth, or leave --inception-weights out to "
            "download that"
        )
