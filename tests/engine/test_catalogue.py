"""Published models that go by a name."""

import pytest
import torch

from driftrae_cli.engine.catalogue import KNOWN, RAE_PROJECT, catalogue
from driftrae_cli.hub import parse
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig


def test_names():
    assert set(KNOWN) == {
        "rae-dinov2-b",
        "rae-dinov2-b-i512",
        "rae-siglip2-b",
        "rae-mae-b",
        "ditdh-xl-256",
        "ditdh-s-256",
        "ditdh-xl-512",
    }
    assert all(name == known.name for name, known in KNOWN.items())


@pytest.mark.parametrize("name", KNOWN)
def test_a_model_is_whole(name):
    known = KNOWN[name]
    for part in known.parts.values():
        place = parse(part.reference)
        assert (place.repo, place.path) == (part.repository, part.file)
        assert part.licence
    if known.kind == "ditdh":
        assert KNOWN[known.rae].kind == "rae"
        assert list(known.parts) == ["weights"]
    else:
        assert list(known.parts) == ["encoder", "decoder", "statistics"]
        assert known.input_size


def test_capitals_as_in_the_repository():
    """The project writes the same word differently in different folders."""
    for part in (part for known in KNOWN.values() for part in known.parts.values()):
        if part.repository == RAE_PROJECT:
            top = part.file.split("/")[:2]
            assert top[0] in ("DiTs", "decoders", "stats")
            assert top[1] == ("Dinov2" if top[0] == "DiTs" else top[1].lower())


def test_teacher_and_autoencoder_are_of_one_size():
    sizes = {"rae-dinov2-b": "ImageNet256", "rae-dinov2-b-i512": "ImageNet512"}
    for known in KNOWN.values():
        if known.rae:
            assert sizes[known.rae] in known.weights.file


@pytest.mark.parametrize(
    ("name", "hidden", "depth", "heads", "rows"),
    [
        ("ditdh-xl-256", (1152, 2048), (28, 2), (16, 16), 16),
        ("ditdh-s-256", (384, 2048), (12, 2), (6, 16), 16),
        ("ditdh-xl-512", (1152, 2048), (28, 2), (16, 16), 32),
    ],
)
def test_sizes_of_teachers(name, hidden, depth, heads, rows):
    with torch.device("meta"):
        model = DiTDH(
            DiTDHConfig(
                input_size=rows,
                in_channels=768,
                hidden_size=hidden,
                depth=depth,
                num_heads=heads,
                num_classes=1000,
            )
        )
    assert KNOWN[name].weights.numbers == sum(t.numel() for t in model.state_dict().values())


@pytest.mark.parametrize(("name", "tokens"), [("rae-dinov2-b", 256), ("rae-dinov2-b-i512", 1024)])
def test_sizes_of_decoders(name, tokens):
    with torch.device("meta"):
        model = ViTDecoder(
            DecoderConfig(
                latent_dim=768,
                width=1152,
                depth=28,
                heads=16,
                mlp_width=4096,
                patch_size=16,
                num_tokens=tokens,
            )
        )
    assert KNOWN[name].weights.numbers == sum(t.numel() for t in model.state_dict().values())


def test_licence_names_parts_that_differ():
    assert KNOWN["ditdh-xl-256"].licence == "MIT (code), see repository"
    assert KNOWN["rae-mae-b"].licence == (
        "encoder: Apache-2.0; decoder and statistics: MIT (code), see repository"
    )


def test_table_has_a_row_per_file():
    rows = catalogue().files
    assert len(rows) == 4 * 3 + 3
    row = next(row for row in rows if row.name == "ditdh-xl-256")
    assert (row.repository, row.about_mb) == ("nyu-visionx/RAE-collections", 3355)
    assert row.file == "DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-XL/stage2_model.pt"
