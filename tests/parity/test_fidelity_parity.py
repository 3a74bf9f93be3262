"""Metrics of pictures against what torch-fidelity has said of the same."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_scores import inception_score
from random_inception import save_random_inception
from safetensors.torch import load_file

from driftrae_cli.fidelity.frechet import GaussianStats, frechet_distance
from driftrae_cli.fidelity.inception import Inception
from driftrae_cli.fidelity.precision_recall import precision_recall

_GOLDEN = Path(__file__).parent / "golden" / "fidelity_features.safetensors"
_SHA256 = {
    "real": "e8d66386b1b793c5232f23107f56223ea9bcf0b840d6db1dbe623e9e65fa21e5",
    "fake": "1195735fbb8fb60d74d425dd8988268748df301432345f0cafc5bb686b9c900f",
}
_RECORDED = {  # FID, precision, recall
    "2048": (4.259242637521074, 0.453125, 0.796875),
    "64": (0.7155016584024028, 0.46875, 0.828125),
}


def _pictures(which):
    rng = np.random.RandomState({"real": 81, "fake": 82}[which])
    coarse = rng.randint(0, 256, (64, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    fine = rng.randint(0, 256, (64, 3, 8, 8)).repeat(4, 2).repeat(4, 3)
    share = rng.randint(0, 5, (64, 1, 1, 1))
    images = (share * coarse + (4 - share) * fine) // 4
    if which == "fake":
        images[32:] = images[32:] // 2 + 64
    return torch.from_numpy(images.astype(np.uint8))


@pytest.mark.parametrize("which", ["real", "fake"])
def test_the_pictures_are_those_of_the_record(which):
    content = _pictures(which).numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == _SHA256[which]


def test_metrics_of_recorded_features():
    recorded = load_file(_GOLDEN)
    _check("64", recorded["fake/features_64"], recorded["real/features_64"])


def _check(layer, fake, real):
    fid, precision, recall = _RECORDED[layer]
    distance = frechet_distance(GaussianStats.of(fake), GaussianStats.of(real))
    assert distance == pytest.approx(fid, rel=1e-4)
    found = precision_recall(fake, real)
    assert (found.precision, found.recall) == (precision, recall)
    swapped = precision_recall(real, fake)
    assert (swapped.precision, swapped.recall) == (recall, precision)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = save_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")
    return Inception.load(path, torch.device("cpu"))


@pytest.mark.parametrize("which", ["real", "fake"])
def test_features_of_the_first_pictures(inception, which, close):
    recorded = load_file(_GOLDEN)
    found = inception(_pictures(which)[:4])
    close(found.pool, recorded[f"{which}/features_2048"], 1e-4)
    close(found.logits, recorded[f"{which}/features_logits_unbiased"], 1e-4)


@pytest.fixture(scope="module")
def measured(inception):
    """Features of both sets by layer, with their logits."""
    early = []
    inception.network.get_submodule("MaxPool_1").register_forward_hook(
        lambda _module, _inputs, output: early.append(output.mean((2, 3)))
    )
    found = {}
    for which in ("fake", "real"):
        early.clear()
        parts = [inception(images) for images in _pictures(which).split(16)]
        found[which, "64"] = torch.cat(early)
        found[which, "2048"] = torch.cat([part.pool for part in parts])
        found[which, "logits"] = torch.cat([part.logits for part in parts])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["2048", "64"])
def test_pictures_by_their_own_features(measured, layer, close):
    recorded = load_file(_GOLDEN)
    for which in ("fake", "real"):
        expected = recorded[f"{which}/features_{layer}"]  # of the first four in layer 2048
        close(measured[which, layer][: len(expected)], expected, 1e-4)
    _check(layer, measured["fake", layer], measured["real", layer])


@pytest.mark.slow
def test_inception_score_of_shuffled_pictures(measured):
    """Ten splits of 64 pictures: torch-fidelity's have six or seven each."""
    order = np.random.RandomState(2020).permutation(64)
    logits = measured["fake", "logits"][order]
    edges = [split * 64 // 10 for split in range(11)]
    scores = [inception_score(logits[first:last]).mean for first, last in pairwise(edges)]
    assert np.mean(scores) == pytest.approx(1.001098092326177, rel=1e-6)
    assert np.std(scores) == pytest.approx(0.0004251711450186653, rel=1e-3)
