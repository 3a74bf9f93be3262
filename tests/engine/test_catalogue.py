"""Published models that go by a name."""

import pytest
import torch

from driftrae_cli.engine.catalogue import KNOWN, catalogue
from driftrae_cli.hub import parse
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig

_RAE = "hf://nyu-visionx/RAE-collections/"
_DITS = f"{_RAE}DiTs/Dinov2/wReg_base/"
# As the project's public configurations name them; capitals differ from folder to folder.
_AUTOENCODERS = {
    "rae-dinov2-b": (
        224,
        "hf://facebook/dinov2-with-registers-base",
        f"{_RAE}decoders/dinov2/wReg_base/ViTXL_n08/model.pt",
        f"{_RAE}stats/dinov2/wReg_base/imagenet1k/stat.pt",
    ),
    "rae-dinov2-b-i512": (
        448,
        "hf://facebook/dinov2-with-registers-base",
        f"{_RAE}decoders/dinov2/wReg_base/ViTXL_n08_i512/model.pt",
        f"{_RAE}stats/dinov2/wReg_base/imagenet1k_512/stat.pt",
    ),
    "rae-siglip2-b": (
        256,
        "hf://google/siglip2-base-patch16-256",
        f"{_RAE}decoders/siglip2/base_p16_i256/ViTXL_n08/model.pt",
        f"{_RAE}stats/siglip2/base_p16_i256/ImageNet1k/stat.pt",
    ),
    "rae-mae-b": (
        256,
        "hf://facebook/vit-mae-base",
        f"{_RAE}decoders/mae/base_p16/ViTXL_n08/model.pt",
        f"{_RAE}stats/mae/base_p16/ImageNet1k/stat.pt",
    ),
}
_TEACHERS = {
    "ditdh-xl-256": (f"{_DITS}ImageNet256/DiTDH-XL/stage2_model.pt", "rae-dinov2-b"),
    "ditdh-s-256": (f"{_DITS}ImageNet256/DiTDH-S_ep14/stage2_model.pt", "rae-dinov2-b"),
    "ditdh-xl-512": (f"{_DITS}ImageNet512/DiTDH-XL_ep400/stage2_model.pt", "rae-dinov2-b-i512"),
    "ditdh-s-512": (f"{_DITS}ImageNet512/DiTDH-S_ep20/stage2_model.pt", "rae-dinov2-b-i512"),
}


def test_names():
    assert {name: known.name for name, known in KNOWN.items()} == {
        name: name for name in (*_AUTOENCODERS, *_TEACHERS)
    }


@pytest.mark.parametrize("name", _AUTOENCODERS)
def test_autoencoders(name):
    known = KNOWN[name]
    references = {part: found.reference for part, found in known.parts.items()}
    input_size, encoder, decoder, statistics = _AUTOENCODERS[name]
    assert references == {"encoder": encoder, "decoder": decoder, "statistics": statistics}
    assert (known.kind, known.input_size, known.rae) == ("rae", input_size, None)
    assert "rae" not in known.entries


@pytest.mark.parametrize("name", _TEACHERS)
def test_teachers(name):
    known = KNOWN[name]
    weights, rae = _TEACHERS[name]
    assert {part: found.reference for part, found in known.parts.items()} == {"weights": weights}
    assert (known.kind, known.rae) == ("ditdh", rae)
    assert known.entries == {"source": weights, "licence": known.licence, "rae": rae}


@pytest.mark.parametrize("name", KNOWN)
def test_parts_have_references_and_licences(name):
    for part in KNOWN[name].parts.values():
        place = parse(part.reference)
        assert (place.repo, place.path) == (part.repository, part.file)
        assert part.licence


@pytest.mark.parametrize(("name", "tokens"), [("rae-mae-b", 256), ("rae-dinov2-b-i512", 1024)])
def test_sizes_of_statistics(name, tokens):
    assert KNOWN[name].statistics.about_bytes == 768 * tokens * 4


@pytest.mark.parametrize(
    ("name", "hidden", "depth", "heads", "rows"),
    [
        ("ditdh-xl-256", (1152, 2048), (28, 2), (16, 16), 16),
        ("ditdh-s-256", (384, 2048), (12, 2), (6, 16), 16),
        ("ditdh-xl-512", (1152, 2048), (28, 2), (16, 16), 32),
        ("ditdh-s-512", (384, 2048), (12, 2), (6, 16), 32),
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
    assert len(rows) == 4 * 3 + 4
    row = next(row for row in rows if row.name == "ditdh-xl-256")
    assert (row.repository, row.about_mb) == ("nyu-visionx/RAE-collections", 3355)
    assert row.file == "DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-XL/stage2_model.pt"
