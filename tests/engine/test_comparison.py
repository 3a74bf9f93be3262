"""Known numbers, each in its cell."""

from driftrae_cli.engine.analysis import (
    Analysis,
    ContextResult,
    DispersionResult,
    Estimate,
    FieldRow,
    Histogram,
    IsotropyResult,
    Scope,
    SpaceAnalysis,
    Verdict,
)
from driftrae_cli.engine.comparison import Line, comparison

SCOPE = Scope("x", ("a",), 9, 9, (0,), (1, 1), 6, 0, "paper", "", "")
DISPERSION = DispersionResult(
    nn_token=Estimate(1.5),
    nn_latent=Estimate(2.5, 2.25, 2.75),
    mmd_token=Estimate(3.5),
    mmd_latent=Estimate(4.5),
    within_token=Estimate(5.5),
    within_latent=Estimate(6.5),
    between_token=7.5,
    between_latent=8.5,
    nn_histogram=Histogram((0.0, 1.0), (1,)),
)
ISOTROPY = IsotropyResult(
    Estimate(0.1), Estimate(0.4), Estimate(0.2), Estimate(0.5), 0.3, 0.6, (), (), (), ()
)
CONTEXT = ContextResult(
    10, overlap=Estimate(0.5), chance=0.1, agreement=Estimate(0.44), explained=Estimate(0.25)
)
FIELD = FieldRow("real", "token", 0.05, 256, 12.25, 34.5, 0.75, 1.25, 0.5, 2.5)


def _space(*field: FieldRow, context: ContextResult | None = CONTEXT) -> SpaceAnalysis:
    verdict = Verdict("doubtful", (), ())
    return SpaceAnalysis("s", SCOPE, ISOTROPY, DISPERSION, field, context, None, verdict, (), ())


def _lines(*spaces: SpaceAnalysis) -> list[Line]:
    return list(comparison(Analysis(spaces, (), "1", "2", "cpu")))


def _cells(lines: list[Line], group: str) -> list[tuple[str, str]]:
    return [(line.name, line.values[0]) for line in lines if line.group.startswith(group)]


def test_distances_of_tokens_and_latents_stand_in_their_own_rows() -> None:
    assert _cells(_lines(_space()), "dispersion") == [
        ("NN-d, tokens", "1.5"),
        ("NN-d, latents", "2.5 (2.25 to 2.75)"),
        ("S-MMD, tokens", "3.5"),
        ("S-MMD, latents", "4.5"),
        ("distance in a class, tokens", "5.5"),
        ("… between classes", "7.5"),
        ("distance in a class, latents", "6.5"),
        ("… between classes", "8.5"),
    ]


def test_isotropy_and_tokens_stand_in_their_own_rows() -> None:
    lines = _lines(_space())
    values = [value for _, value in _cells(lines, "isotropy")]
    assert values == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    names = [name for name, _ in _cells(lines, "isotropy")]
    assert [name.split(",")[0] for name in names] == ["participation ratio"] * 3 + [
        "spectral entropy"
    ] * 3
    assert [name for name in names if "corrected" in name] == [names[1], names[4]]
    assert [name for name in names if "pooled" in name] == [names[2], names[5]]
    assert [value for _, value in _cells(lines, "tokens of a picture")] == [
        "0.5", "0.1", "0.44", "0.25",
    ]  # fmt: skip


def test_the_field_says_positives_seen_share_and_pull_over_push() -> None:
    [line] = [line for line in _lines(_space(FIELD)) if "push" in line.group]
    assert "256" in line.group
    assert line.name == "real tokens, τ 0.05"
    assert line.values == ("12.2 / 0.75 / 2.5",)


def test_what_a_space_lacks_is_a_dash() -> None:
    lines = _lines(_space(FIELD), _space(context=None))
    values = {line.name: line.values for line in lines}
    assert values["real tokens, τ 0.05"] == ("12.2 / 0.75 / 2.5", "-")
    assert values["shared neighbours"] == ("0.5", "-")
