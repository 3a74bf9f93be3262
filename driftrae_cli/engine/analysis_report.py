"""The folder that `analyze-latent --out` leaves: numbers, diagrams and a page to read."""

import base64
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from driftrae_cli.engine.analysis import Analysis, Scope, SpaceAnalysis
from driftrae_cli.engine.analysis_plots import ENDINGS, PLOTS, Plot, draw_all, short_name
from driftrae_cli.engine.comparison import Line, comparison
from driftrae_cli.engine.verdict import DOUBTFUL, NOT_SUITED, SUITED
from driftrae_cli.errors import OutputError
from driftrae_cli.files import make_folder, write_text

NUMBERS, PAGE, PLOTS_FOLDER = "analysis.json", "report.html", "plots"


def prepare_report(folder: Path, overwrite: bool) -> None:
    """Make the folder; one that holds anything is kept, but for an older report.

    Raises:
        OutputError: it is a file, or holds something and `overwrite` is off, or holds what no
            report has.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder}: is a file; name a folder")
    ours = {NUMBERS, PAGE, PLOTS_FOLDER}
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there - ours:
        strange = sorted(there - ours)[0]
        raise OutputError(
            f"--out {folder}: holds {strange}, which is of no report; name a new folder"
        )
    if there and not overwrite:
        raise OutputError(f"--out {folder}: exists already; choose another or add --overwrite")
    make_folder(folder / PLOTS_FOLDER)


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
    """One HTML page that needs no network and no other file.

    Args:
        plots: what `draw_all` has drawn.
        folder: where.
    """
    names = ", ".join(space.space for space in analysis.spaces) or "Theorem 1"
    body = [f"<h1>Does drifting suit {_text(names)}?</h1>"] if analysis.spaces else []
    body += [_verdict(space) for space in analysis.spaces]
    if analysis.spaces:
        body += ["<h2>All statistics</h2>", _table(analysis), _TABLE_NOTE]
    body += [_figure(plot, folder) for plot in plots]
    if analysis.spaces:
        body += ["<h2>Protocol</h2>", *(_protocol(space) for space in analysis.spaces)]
    body.append(f"<footer>driftrae {_text(analysis.version)}; {_SOURCES}</footer>")
    return _PAGE.format(title=_text(f"Latent spaces: {names}"), body="\n".join(body))


_text = escape


def _verdict(space: SpaceAnalysis) -> str:
    verdict = space.verdict
    reasons = _list(verdict.reasons)
    warnings = f"<p>What limits this:</p>{_list(space.warnings)}" if space.warnings else ""
    rows = "".join(
        f"<tr><th>{_text(row.statistic)}</th><td>{row.value:.4g}</td>"
        f"<td>{_text(row.threshold or 'shown only')}</td><td>{_text(row.says or '-')}</td>"
        f"<td>{_known(row.paper_vae)}</td><td>{_known(row.paper_rae)}</td>"
        f"<td>{_known(row.shapes_vae)}</td><td>{_known(row.shapes_rae)}</td></tr>"
        for row in verdict.rows
    )
    return (
        f'<section class="verdict {_CLASSES[verdict.word]}"><h2>{_text(space.space)}: '
        f"<strong>{_text(verdict.word)}</strong></h2>{reasons}"
        f'<div class="wide"><table><tr><th>statistic</th><th>here</th><th>threshold</th>'
        f"<th>says</th><th>SD-VAE (paper)</th><th>RAE (paper)</th><th>shapes-vae</th>"
        f"<th>shapes-rae</th></tr>{rows}</table></div>{warnings}</section>"
    )


_CLASSES = {SUITED: "yes", DOUBTFUL: "maybe", NOT_SUITED: "no"}


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(text)}</li>" for text in texts) + "</ul>"


def _table(analysis: Analysis) -> str:
    heads = [
        *(short_name(space.space) for space in analysis.spaces),
        "SD-VAE (paper)",
        "RAE (paper)",
    ]
    head = "".join(f"<th>{_text(name)}</th>" for name in ["statistic", *heads])
    rows = "".join(_rows(comparison(analysis), len(heads) + 1))
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _rows(lines: Sequence[Line], columns: int) -> Iterator[str]:
    for group, part in groupby(lines, lambda line: line.group):
        yield f'<tr class="group"><th colspan="{columns}">{_text(group)}</th></tr>'
        for line in part:
            cells = "".join(
                f"<td>{_text(value)}</td>"
                for value in (*line.values, line.paper_vae, line.paper_rae)
            )
            yield f"<tr><th>{_text(line.name)}</th>{cells}</tr>"


_TABLE_NOTE = (
    "<p>In brackets: 95 % bootstrap intervals over classes, of trajectories over trajectories. "
    "Pooled is one covariance of all tokens of all classes, another protocol than the paper's; "
    "the two can order spaces differently. Published NN-d is in the unit of other latents than "
    "normalised ones, so it is no threshold. Of what the field sees: effective number of "
    "positives, and the length of the attraction over that of the repulsion.</p>"
)


def _figure(plot: Plot, folder: Path) -> str:
    picture = base64.b64encode((folder / f"{plot.name}.png").read_bytes()).decode()
    return (
        f"<h2>{_text(plot.title)}</h2><figure>"
        f'<img alt="{_text(plot.title)}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{_text(plot.explained)}</figcaption></figure>"
    )


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
        lines["teacher"] = found.teacher
        lines["trajectories"] = (
            f"{found.trajectories}, {found.steps} Euler steps, time shift {found.shift:g}, "
            f"curvature fitted in windows of {found.window} states"
        )
    rows = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in lines.items())
    return f"<dl>{rows}</dl>"


def _tokens(scope: Scope) -> str:
    rows, columns = scope.grid
    count = len(scope.tokens)
    of_all = "all" if count == rows * columns else f"{count} (numbers {scope.tokens})"
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
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem; }}
h1, h2 {{ line-height: 1.2; overflow-wrap: anywhere; }}
h2 {{ margin-top: 2.2rem; }}
.verdict {{ border-left: 6px solid; padding: 0.2rem 1rem 0.6rem; margin: 1.2rem 0;
  background: #f7f7f7; }}
.verdict h2 {{ margin-top: 0.5rem; font-size: 1.25rem; }}
.yes {{ border-color: #2f8f5b; }}
.maybe {{ border-color: #d09a1a; }}
.no {{ border-color: #c43d5f; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; }}
th {{ font-weight: 600; }} .group th {{ padding-top: 0.9rem; color: #555; }}
figure {{ margin: 0; }} img {{ max-width: 100%; height: auto; }}
figcaption {{ max-width: 46rem; }}
dt {{ font-weight: 600; }} dd {{ margin: 0 0 0.4rem 0; overflow-wrap: anywhere; }}
dl {{ border-top: 1px solid #ddd; padding-top: 0.8rem; font-size: 0.9rem; }}
footer {{ margin-top: 2.5rem; color: #666; font-size: 0.85rem; }}
@media print {{ .wide {{ overflow: visible; }} h2 {{ break-after: avoid; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
