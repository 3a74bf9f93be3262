"""The verdict on spaces of which it is known whether drifting works."""

import math
from dataclasses import replace

import pytest

from driftrae_cli.engine.analysis import (
    ContextResult,
    DispersionResult,
    Estimate,
    Histogram,
    IsotropyResult,
    Verdict,
)
from driftrae_cli.engine.verdict import (
    AGREEMENT,
    DOUBTFUL,
    ENTROPY,
    KNOWN,
    MMD,
    NEAREST,
    NOT_SUITED,
    PARTICIPATION,
    SUITED,
    Known,
    judge,
)


def _verdict(
    pr: float, se: float, mmd: float, agreement: float | None = None, samples: int = 1000
) -> Verdict:
    one = Estimate(1.0)
    ratio, entropy = Estimate(pr), Estimate(se)
    small = Estimate(1e-3)  # plain ones, too small for want of samples
    isotropy = IsotropyResult(small, small, ratio, entropy, pr, se, (), (), (), ())
    dispersion = DispersionResult(
        one, one, Estimate(mmd), one, one, one, None, None, Histogram((0.0, 1.0), (1,))
    )
    context = None
    if agreement is not None:
        context = ContextResult(10, one, 0.1, Estimate(agreement), one)
    return judge(isotropy, dispersion, (), context, None, (8, 2, 2), samples)


def test_the_papers_own_spaces() -> None:
    assert _verdict(0.0630, 0.2110, 0.07913).word == SUITED
    assert _verdict(0.2068, 0.3781, 0.00576).word == NOT_SUITED


@pytest.mark.parametrize("name", ["shapes_rae", "shapes_vae"])
def test_the_built_in_spaces(name: str) -> None:
    values = [getattr(KNOWN[row], name) for row in (PARTICIPATION, ENTROPY, MMD, AGREEMENT)]
    assert _verdict(*values).word == (SUITED if name == "shapes_rae" else NOT_SUITED)


def test_between_the_known_spaces_it_is_doubtful() -> None:
    between = _verdict(0.15, 0.33, 0.01)
    assert between.word == DOUBTFUL
    assert [row.says for row in between.rows if row.says] == [DOUBTFUL] * 3
    assert "participation ratio, corrected 0.15 is between the known spaces" in between.reasons


def test_one_bad_statistic_of_three_is_doubtful() -> None:
    assert _verdict(0.05, 0.2, 0.001).word == DOUBTFUL
    assert _verdict(0.05, 0.5, 0.001).word == NOT_SUITED


def test_half_way_is_on_a_log_scale() -> None:
    middle = math.sqrt(0.2068 * 0.0630)
    says = [_verdict(pr, 0.2, 0.08).rows[0].says for pr in (0.999 * middle, 1.001 * middle)]
    assert says == [SUITED, DOUBTFUL]
    assert (
        _verdict(0.2, 0.2, 0.08).rows[0].threshold == "suited below 0.114, not above 0.207 (paper)"
    )


def test_agreement_by_chance_is_not_suited() -> None:
    for agreement in (-0.01, 0.0, 0.002923, 0.0039):
        [row] = [r for r in _verdict(0.05, 0.2, 0.08, agreement).rows if r.statistic == AGREEMENT]
        assert row.says == NOT_SUITED


def test_statistics_without_meaning_are_shown_only() -> None:
    [row] = [r for r in _verdict(0.05, 0.2, 0.08).rows if r.statistic == NEAREST]
    assert (row.says, row.threshold) == ("", "")
    assert replace(Known(1.0, 2.0, 3.0, 4.0)).meaning is None


def test_few_samples_make_no_verdict() -> None:
    few = _verdict(0.0630, 0.2110, 0.07913, samples=99)
    assert few.word == DOUBTFUL
    [reason] = few.reasons
    assert reason.startswith("99 latents of a class are too few")
    assert _verdict(0.0630, 0.2110, 0.07913, samples=100).word == SUITED


def test_isotropy_is_judged_without_the_error_of_few_samples() -> None:
    one = Estimate(1.0)
    dispersion = DispersionResult(
        one, one, Estimate(0.08), one, one, one, None, None, Histogram((0.0, 1.0), (1,))
    )
    plain = IsotropyResult(one, one, None, None, 1.0, 1.0, (), (), (), ())
    found = judge(plain, dispersion, (), None, None, (8, 2, 2), 1000)
    assert [row.statistic for row in found.rows] == [MMD, NEAREST]


def test_what_depends_on_the_number_of_samples_is_judged_with_enough_only() -> None:
    few = _verdict(0.0630, 0.2110, 0.001, 0.001, samples=499)
    assert few.word == SUITED
    assert {row.statistic for row in few.rows if row.says} == {PARTICIPATION, ENTROPY}
    assert _verdict(0.0630, 0.2110, 0.001, 0.001, samples=500).word == NOT_SUITED
