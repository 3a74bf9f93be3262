"""What a report's folder holds, and that its page reads well and needs nothing else."""

import base64
import dataclasses
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from latent_spaces import clustered, write_cache

from driftrae_cli.drift.theorem import TheoremPoint
from driftrae_cli.engine import analysis_report
from driftrae_cli.engine.analysis import Analysis, Band, Estimate, TrajectoryResult
from driftrae_cli.engine.analysis_report import numbers_json, prepare_report, write_report
from driftrae_cli.engine.analyze import AnalysisSettings, analyze
from driftrae_cli.engine.comparison import comparison
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.errors import OutputError

NASTY = """<b>&"x'</b><script>alert(1)</script>"""
FILES = {"analysis.json", "report.html", "plots"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")


def _trajectories() -> TrajectoryResult:
    band = Band((1.0, 0.5, 0.0), (0.1, 0.2, 0.1), (0.2, 0.3, math.nan), (0.3, 0.4, 0.3))
    one = Estimate(1.25, 1.125, 1.5)
    return TrajectoryResult("a-teacher", "cafe", 32, 400, 3.0, 101, one, band, one, band, one, one)


ROWS = tuple(
    TheoremPoint(d, tau, 1.5 / d, 1 / d, 0.75, 3**-0.5) for d in (16, 32) for tau in (0.05, 1.0)
)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Two spaces measured on hand-made latents; the second has a teacher and awkward names."""
    folder = tmp_path_factory.mktemp("spaces")
    for name, rank in (("narrow", 2), ("wide", 6)):
        classes = {label: clustered(k, 20, 6, 2, rank=rank) for k, label in enumerate(["a", "<i>"])}
        write_cache(folder / name, classes)
    settings = AnalysisSettings(
        data="shapes", classes=None, samples=20, pairs=20, tokens="all", aggregate="paper",
        trajectories=3, steps=40, seed=0, max_bad=0,
    )  # fmt: skip
    found = analyze(
        [str(folder / "narrow"), str(folder / "wide")],
        settings,
        teachers=["none", "none"],
        theorem=False,
        out=None,
        overwrite=False,
        reporter=NullReporter(),
        device="cpu",
    )
    narrow, wide = found.spaces
    wide = dataclasses.replace(
        wide, space=NASTY, trajectories=_trajectories(), warnings=("few <samples>", "& more")
    )
    return dataclasses.replace(
        found, spaces=(dataclasses.replace(narrow, space="narrow"), wide), theorem=ROWS
    )


@pytest.fixture(scope="module")
def report(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "report"
    prepare_report(folder, overwrite=False)
    write_report(analysis, folder)
    return folder


class Page(HTMLParser):
    """Elements, attributes and the text that a reader sees; fails where tags do not match."""

    _WITHOUT_END = frozenset({"meta", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self._WITHOUT_END:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "report.html").read_text())


def _same(value: Any, read: Any) -> bool:
    """Whether JSON holds a result, with null for what is not finite."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return list(read) == names and all(_same(getattr(value, n), read[n]) for n in names)
    if isinstance(value, tuple):
        return len(value) == len(read) and all(map(_same, value, read))
    if isinstance(value, float) and not math.isfinite(value):
        return read is None
    return type(value) is type(read) and value == read


def test_the_json_holds_every_number(analysis: Analysis, report: Path) -> None:
    read = json.loads((report / "analysis.json").read_text())
    assert _same(analysis, read)
    assert read["spaces"][1]["trajectories"]["curvature_band"]["median"] == [0.2, 0.3, None]
    assert read["spaces"][0]["scope"]["source_hash"]
    infinite = dataclasses.replace(
        analysis, theorem=(dataclasses.replace(ROWS[0], attraction=math.inf),)
    )
    assert json.loads(numbers_json(infinite))["theorem"][0]["attraction"] is None


def test_the_page_needs_nothing_else(report: Path, page: Page) -> None:
    assert {tag for tag, _ in page.elements} <= {
        "html", "head", "meta", "link", "title", "style", "body", "h1", "h2", "h3", "section",
        "strong", "ul", "li", "div", "table", "thead", "tbody", "tr", "th", "td", "p", "figure",
        "img", "figcaption", "dl", "dt", "dd", "footer",
    }  # fmt: skip
    sources = [
        value for _, attributes in page.elements
        for name, value in attributes.items() if name in ("src", "href", "srcset", "style")
    ]  # fmt: skip
    assert sources and all(source.startswith("data:") for source in sources)
    html = (report / "report.html").read_text()
    assert "http" not in re.sub(r"base64,[\w+/=]*", "", html) and "@import" not in html
    assert "url(" not in html
    assert html.isascii()


def test_the_page_can_be_read_by_everyone(page: Page) -> None:
    [html] = page.all("html")
    assert html["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("title")) == len(page.all("h1")) == 1
    assert all(len(image["alt"]) > 40 for image in page.all("img"))


def test_the_page_says_the_verdicts_and_every_statistic(analysis: Analysis, page: Page) -> None:
    for space in analysis.spaces:
        assert f"{space.space}: {space.verdict.word}" in page.text
        for text in (*space.verdict.reasons, *space.warnings, space.scope.source_hash):
            assert text in page.text
        for row in space.verdict.rows:
            assert f"{row.value:.4g}" in page.texts and row.threshold in page.text
    lines = comparison(analysis)
    assert len(lines) > 30
    for line in lines:
        cells = [line.name, *line.values, line.paper_vae, line.paper_rae]
        assert _holds(page.texts, cells), line.name
    assert {"a-teacher (SHA-256 cafe)", "2: a, <i>", "all of 2 x 2"} <= set(page.texts)
    assert "32, 400 Euler steps, time shift 3" in page.text


def _holds(texts: list[str], row: list[str]) -> bool:
    """Whether the cells follow each other."""
    return any(texts[k : k + len(row)] == row for k in range(len(texts)))


def test_names_are_escaped(page: Page, report: Path) -> None:
    html = (report / "report.html").read_text()
    assert NASTY in page.texts, "as the reader's own text"
    assert "<script" not in html and "<b>" not in html and "<i>" not in html
    assert "few <samples>" in page.texts


def test_every_diagram_is_explained_and_is_the_file(page: Page, report: Path) -> None:
    names = ["spectrum", "isotropy", "token-map", "nearest", "perplexity", "trajectories",
             "theorem"]  # fmt: skip
    embedded = [base64.b64decode(image["src"].partition(",")[2]) for image in page.all("img")]
    files = [(report / "plots" / f"{name}.svg").read_bytes() for name in names]
    assert embedded == files
    assert sorted(path.name for path in (report / "plots").iterdir()) == sorted(
        f"{name}{ending}" for name in names for ending in (".png", ".svg")
    )
    for image in page.all("img"):
        place = page.texts.index(image["alt"])
        assert page.texts[place + 1].count(".") >= 1


def test_the_theorem_has_a_row_per_dimension(page: Page) -> None:
    assert _holds(page.texts, ["16", "0.09375", "0.09375", "0.0625", "0.75", "0.75", "0.5774"])
    assert _holds(page.texts, ["|V⁺|², τ 0.05", "|V⁺|², τ 1", "1 / d"])


def test_an_older_report_is_replaced_as_a_whole(analysis: Analysis, tmp_path: Path) -> None:
    """With fewer diagrams, and without spaces."""
    write_in = tmp_path / "r"
    prepare_report(write_in, overwrite=False)
    for name in ("spectrum.png", "theorem.svg"):
        (write_in / "plots" / name).write_text("old")
    only = dataclasses.replace(analysis, spaces=())
    prepare_report(write_in, overwrite=True)
    write_report(only, write_in)
    assert {path.name for path in (write_in / "plots").iterdir()} == {"theorem.png", "theorem.svg"}
    page = Page((write_in / "report.html").read_text())
    assert "Theorem 1 by experiment" in page.texts and "Protocol" not in page.texts
    assert json.loads((write_in / "analysis.json").read_text())["spaces"] == []


def test_the_page_is_the_last_file(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sees it has the rest, and numbers are safe before anything is drawn."""
    seen = []

    def stop(*_: Any) -> Any:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    prepare_report(tmp_path, overwrite=False)
    monkeypatch.setattr(analysis_report, "draw_all", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(analysis, tmp_path)
    assert sorted(seen) == ["analysis.json", "plots"]
    assert not (tmp_path / "report.html").exists()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OutputError, match=r"--out .*file: is a file; name a folder"):
        prepare_report(file, overwrite=True)
    with pytest.raises(OutputError, match="cannot be"):
        prepare_report(file / "below", overwrite=True)
    with pytest.raises(OutputError, match=r"holds file, which is of no report; name a new folder"):
        prepare_report(tmp_path, overwrite=True)
    report = tmp_path / "report"
    prepare_report(report, overwrite=False)
    prepare_report(report, overwrite=False)  # nothing was written, as after an error
    for name in ("analysis.json", "plots/spectrum.png"):
        (report / name).write_text("old")
        with pytest.raises(OutputError, match="exists already; choose another or add --overwrite"):
            prepare_report(report, overwrite=False)
        prepare_report(report, overwrite=True)
        (report / name).unlink()
    (report / ".report.html.12.partial").write_text("killed")
    prepare_report(report, overwrite=False)
    assert file.read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(dir: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        prepare_report(tmp_path / "r", overwrite=False)


def _browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.mark.skipif(_browser() is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_without_complaints(report: Path, tmp_path: Path) -> None:
    """No network, nothing on the console, every picture decoded, no sideways scrolling."""
    browser = _browser()
    assert browser
    checked = tmp_path / "checked.html"
    html = (report / "report.html").read_text()
    checked.write_text(html.replace("</body>", f"<script>{_MEASURE}</script></body>"))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=400,800",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
         "--proxy-server=127.0.0.1:9", "--dump-dom", checked.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    [measured] = re.findall(r'data-measured="([^"]*)"', done.stdout)
    images, broken, loaded, width, window = map(int, measured.split())
    assert (images, broken, loaded) == (7, 0, 0)
    assert width <= window


_MEASURE = """addEventListener("load", () => {
  const images = [...document.images];
  const broken = images.filter(image => !image.naturalWidth).length;
  const loaded = performance.getEntriesByType("resource")
    .filter(entry => !entry.name.startsWith("data:")).length;
  const root = document.documentElement;
  document.body.dataset.measured =
    [images.length, broken, loaded, root.scrollWidth, root.clientWidth].join(" ");
});"""
