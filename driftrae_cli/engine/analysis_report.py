"""The folder that `analyze-latent --out` leaves: numbers, diagrams and a page to read."""

import base64
import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from driftrae_cli.drift.theorem import TheoremPoint
from driftrae_cli.engine.analysis import Analysis, Judgement, Scope, SpaceAnalysis
from driftrae_cli.engine.analysis_plots import ENDINGS, PLOTS, Plot, draw_all, names_of
from driftrae_cli.engine.comparison import Line, comparison, text_of
from driftrae_cli.engine.verdict import DOUBTFUL, NOT_SUITED, SUITED
from driftrae_cli.errors import OutputError
from driftrae_cli.files import make_folder, write_text

NUMBERS, PAGE, PLOTS_FOLDER = "analysis.json", "report.html", "plots"
_MOST_IN_TITLE = 2


def prepare_report(folder: Path, overwrite: bool) -> None:
    """Make the folder; one that holds anything is kept, but for an older report.

    Raises:
        OutputError: it is a file, or holds something and `overwrite` is off, or holds what no
            report has, or cannot be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"--out {folder}: is a file; name a folder")
        strange, report = _found_in(folder)
        if strange:
            raise OutputError(
                f"--out {folder}: holds {strange[0]}, which is of no report; name a new folder"
            )
        if report and not overwrite:
            raise OutputError(f"--out {folder}: exists already; choose another or add --overwrite")
        make_folder(folder / PLOTS_FOLDER)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written ({error.strerror})") from error


def _found_in(folder: Path) -> tuple[list[str], bool]:
    """Names that are of no report, and whether there is any file of one.

    The folders that an analysis makes before it measures, and pieces of files that a killed one
    left, are neither.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    whole = [name for name in names if not (name.startswith(".") and name.endswith(".partial"))]
    strange = [name for name in whole if name not in (NUMBERS, PAGE, PLOTS_FOLDER)]
    plots = folder / PLOTS_FOLDER
    report = {NUMBERS, PAGE} & set(whole) or (plots.exists() and any(plots.iterdir()))
    return strange, bool(report)


def write_report(analysis: Analysis, folder: Path) -> None:
    """Write numbers, diagrams and page into a prepared folder; the page last.

    Raises:
        OutputError: a file cannot be written.
    """
    plots = folder / PLOTS_FOLDER
    write_text(folder / NUMBERS, numbers_json(analysis))
    drawn = draw_all(analysis, plots)
    for plot in set(PLOTS) - set(drawn):  # of an older report with more in it
        for ending in ENDINGS:
            (plots / f"{plot.name}{ending}").unlink(missing_ok=True)
    write_text(folder / PAGE, page(analysis, drawn, plots))


def numbers_json(analysis: Analysis) -> str:
    """Every number, with null for those that JSON cannot write."""
    return json.dumps(_plain(dataclasses.asdict(analysis)), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page(analysis: Analysis, plots: Sequence[Plot], folder: Path) -> str:
    """One HTML page, in ASCII, that needs no network and no other file.

    Args:
        plots: what `draw_all` has drawn.
        folder: where.
    """
    title = _title(analysis.spaces)
    body = [f"<h1>{_text(title)}</h1>", *_verdicts(analysis.spaces)]
    if analysis.spaces:
        body += ["<h2>All statistics</h2>", _statistics(analysis), _STATISTICS_NOTE]
    for plot in plots:
        body.append(_figure(plot, folder))
        if plot.name == "theorem":
            body.append(_theorem(analysis.theorem))
    if analysis.spaces:
        body += ["<h2>Protocol</h2>", *(_protocol(space) for space in analysis.spaces)]
    body.append(f"<footer>driftrae {_text(analysis.version)}; {_SOURCES}</footer>")
    whole = _PAGE.format(title=_text(title), body="\n".join(body))
    # So it reads the same whatever a file's encoding is taken for.
    return whole.encode("ascii", "xmlcharrefreplace").decode()


_text = escape


def _title(spaces: Sequence[SpaceAnalysis]) -> str:
    if not spaces:
        return "Theorem 1 by experiment"
    if len(spaces) > _MOST_IN_TITLE:
        return f"Does drifting suit these {len(spaces)} latent spaces?"
    return f"Does drifting suit {' or '.join(names_of(spaces))}?"


def _verdicts(spaces: Sequence[SpaceAnalysis]) -> Iterator[str]:
    for space in spaces:
        verdict = space.verdict
        limits = f"<h3>What limits this</h3>{_list(space.warnings)}" if space.warnings else ""
        yield (
            f'<section class="verdict {_CLASSES[verdict.word]}"><h2>{_text(space.space)}: '
            f"<strong>{_text(verdict.word)}</strong></h2>{_list(verdict.reasons)}{limits}"
            f"<h3>What it rests on</h3>{_judged(verdict.rows)}</section>"
        )


_CLASSES = {SUITED: "yes", DOUBTFUL: "maybe", NOT_SUITED: "no"}


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(text)}</li>" for text in texts) + "</ul>"


def _judged(rows: Sequence[Judgement]) -> str:
    heads = (
        "statistic", "here", "says", "SD-VAE (paper)", "RAE (paper)", "shapes-vae", "shapes-rae",
        "thresholds",
    )  # fmt: skip
    return _table(heads, [_row(_judgement(row)) for row in rows])


def _judgement(row: Judgement) -> tuple[str, ...]:
    known = (row.value, row.paper_vae, row.paper_rae, row.shapes_vae, row.shapes_rae)
    here, *others = (text_of(value) for value in known)
    return (row.statistic, here, row.says or "-", *others, row.threshold or "shown only")


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls where it is too wide."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    values = "".join(f"<td>{_text(value)}</td>" for value in others)
    return f'<tr><th scope="row">{_text(first)}</th>{values}</tr>'


def _statistics(analysis: Analysis) -> str:
    heads = ["statistic", *names_of(analysis.spaces), "SD-VAE (paper)", "RAE (paper)"]
    return _table(heads, list(_statistic_rows(comparison(analysis), len(heads))))


def _statistic_rows(lines: Sequence[Line], columns: int) -> Iterator[str]:
    for group, part in groupby(lines, lambda line: line.group):
        yield f'<tr class="group"><th colspan="{columns}">{_text(group)}</th></tr>'
        for line in part:
            yield _row((line.name, *line.values, line.paper_vae, line.paper_rae))


_STATISTICS_NOTE = (
    "<p>In brackets: 95 % bootstrap intervals over classes, of trajectories over trajectories. "
    "Pooled is one covariance of all tokens of all classes, another protocol than the paper's; "
    "the two can order spaces differently. Published NN-d is in the unit of other latents than "
    "normalised ones, so it is no threshold. Of what the field sees: effective number of "
    "positives, their share in one softmax over positives and negatives, and the length of the "
    "attraction over that of the repulsion.</p>"
)


def _figure(plot: Plot, folder: Path) -> str:
    """A diagram with what it shows and what follows from it."""
    drawing = base64.b64encode((folder / f"{plot.name}.svg").read_bytes()).decode()
    shown, conclude = _EXPLAINED[plot.name]
    return (
        f'<section class="plot"><h2>{_text(plot.title)}</h2><figure>'
        f'<img alt="{_text(shown)}" src="data:image/svg+xml;base64,{drawing}">'
        f"<figcaption><p>{_text(shown)}</p><p>{_text(conclude)}</p>"
        f'<p class="file">{PLOTS_FOLDER}/{plot.name}.png, .svg</p></figcaption></figure></section>'
    )


_EXPLAINED: Mapping[str, tuple[str, str]] = {
    "spectrum": (
        "Variance of each direction of a token, from the widest to the narrowest, in units of the "
        "mean (grey line): of every class and token by itself, then averaged, and of all pooled.",
        "A steep fall means that tokens of a class vary in few directions, which keeps real and "
        "generated samples near each other; a flat line is a scattered, VAE-like space.",
    ),
    "isotropy": (
        "Participation ratio and spectral entropy of each token, averaged over classes; 1 is a "
        "round distribution, 1 / channels a line.",
        "Small values are what drifting needs, and a narrow histogram says that the mean in the "
        "table speaks for all tokens.",
    ),
    "token-map": (
        "Participation ratio of each token at its place in the picture, with the same colours for "
        "all spaces; grey tokens were not measured.",
        "Bright places vary in more directions, so the field is less informative there.",
    ),
    "nearest": (
        "Distance of a token to the nearest one of the same class, over all samples, tokens and "
        "classes, in units of the root of the channels.",
        "Near 1.4, the distance of independent samples of unit variance, a neighbour is no nearer "
        "than anything else and the field cannot tell samples apart.",
    ),
    "perplexity": (
        "Effective number of real samples in the drifting field's attraction against temperature, "
        "by where the field starts, for single tokens and whole latents; the dashed line is all "
        "of them.",
        "One is a single neighbour and noisy, all of them is only the class mean; between them the "
        "field is informative.",
    ),
    "trajectories": (
        "How the teacher's way from noise to data bends, median and 10 to 90 % of the "
        "trajectories: by the paper's projection into three dimensions, and without any, as the "
        "angle of successive velocities.",
        "Strong curvature makes distilling along trajectories unstable, which is what drifting "
        "avoids; curvatures of spaces of different size compare after multiplication with the root "
        "of their size, as in the table.",
    ),
    "theorem": (
        "Mean attraction and repulsion of d positives on the unit sphere and d negatives in a "
        "cube, for growing d, beside their limits.",
        "The attraction falls like 1 / d while the repulsion stays at r / √3; low temperatures "
        "reach these limits only in high dimensions, since there a sample sees one neighbour "
        "instead of the mean of all.",
    ),
}


def _theorem(rows: Sequence[TheoremPoint]) -> str:
    """A row per dimension, beside the limits."""
    taus = list(dict.fromkeys(row.temperature for row in rows))
    heads = (
        "d",
        *(f"|V⁺|², τ {tau:g}" for tau in taus),
        "1 / d",
        *(f"|V⁻|, τ {tau:g}" for tau in taus),
        "r / √3",
    )
    lines = []
    for dimension, group in groupby(rows, lambda row: row.dimension):
        part = list(group)
        pull, push = [row.attraction for row in part], [row.repulsion for row in part]
        values = (*pull, part[0].attraction_limit, *push, part[0].repulsion_limit)
        lines.append(_row((str(dimension), *(text_of(value) for value in values))))
    return _table(heads, lines)


def _protocol(space: SpaceAnalysis) -> str:
    scope = space.scope
    lines = {
        "space": space.space,
        "data": scope.data,
        "classes": f"{len(scope.classes)}: {', '.join(scope.classes)}",
        "latents of each class": f"{scope.samples}, {scope.paired} of them compared in pairs",
        "tokens": _tokens(scope),
        "channels": str(scope.channels),
        "seed": str(scope.seed),
        "hash of encoder and preprocessing, or of the cache": scope.source_hash,
    }
    found = space.trajectories
    if found:
        lines["teacher"] = f"{found.teacher} (SHA-256 {found.teacher_hash})"
        lines["trajectories"] = (
            f"{found.trajectories}, {found.steps} Euler steps, time shift {found.shift:g}, "
            f"curvature fitted in windows of {found.window} states"
        )
    rows = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in lines.items())
    return f"<dl>{rows}</dl>"


def _tokens(scope: Scope) -> str:
    rows, columns = scope.grid
    count = len(scope.tokens)
    numbers = ", ".join(map(str, scope.tokens))
    of_all = "all" if count == rows * columns else f"{count} (numbers {numbers})"
    return f"{of_all} of {rows} x {columns}"


_SOURCES = (
    "statistics after arXiv 2606.15553, App. B.1; curvature after arXiv 2506.10177. Every number "
    f"is in {NUMBERS}."
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 72rem; margin: 0 auto; padding: 1rem; }}
h1, h2, h3 {{ line-height: 1.25; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.7rem; }}
h2 {{ margin: 2.2rem 0 0.6rem; font-size: 1.3rem; }}
h3 {{ margin: 1rem 0 0.3rem; font-size: 0.9rem; color: #555; }}
ul {{ margin: 0.3rem 0; padding-left: 1.2rem; }}
li, p, dd {{ overflow-wrap: anywhere; max-width: 52rem; }}
.verdict {{ border-left: 6px solid; padding: 0.7rem 1rem 0.8rem; margin: 1.2rem 0;
  background: #f7f7f7; }}
.verdict h2 {{ margin-top: 0; }}
.yes {{ border-color: #2f8f5b; }} .yes strong {{ color: #1f6f44; }}
.maybe {{ border-color: #d09a1a; }} .maybe strong {{ color: #8a6100; }}
.no {{ border-color: #c43d5f; }} .no strong {{ color: #a82c4c; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 0.3rem 1.1rem 0.3rem 0; border-bottom: 1px solid #ddd;
  white-space: nowrap; }}
th {{ font-weight: 600; }}
tbody th {{ font-weight: 400; }}
tbody th, thead th:first-child {{ position: sticky; left: 0; background: #fff; }}
.verdict tbody th, .verdict thead th:first-child {{ background: #f7f7f7; }}
.group th {{ padding-top: 1rem; font-weight: 600; color: #555; }}
figure {{ margin: 0; display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; align-items: flex-start; }}
img {{ flex: 1 1 34rem; min-width: 0; max-width: 44rem; width: 100%; height: auto; }}
figcaption {{ flex: 1 1 18rem; }} figcaption p {{ margin: 0 0 0.7rem; }}
.file {{ color: #666; font-size: 0.8rem; }}
dl {{ border-top: 1px solid #ddd; padding-top: 0.8rem; font-size: 0.9rem; }}
dt {{ font-weight: 600; }} dd {{ margin: 0 0 0.4rem 0; }}
footer {{ margin-top: 2.5rem; color: #666; font-size: 0.85rem; overflow-wrap: anywhere; }}
@media (max-width: 40rem) {{
  th, td {{ padding-right: 0.7rem; }} tbody th {{ white-space: normal; min-width: 7rem; }}
}}
@media print {{
  body {{ font-size: 11px; padding: 0; }}
  .wide {{ overflow: visible; }} th, td {{ white-space: normal; }}
  h2, h3 {{ break-after: avoid; }} figure, tr {{ break-inside: avoid; }}
}}
</style>
</head>
<body>
{body}
</body>
</html>
"""
