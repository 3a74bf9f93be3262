"""Tables on screens of any width and in pipes: nothing of them is cut."""

import io
import re
from dataclasses import dataclass

import pytest
from rich.cells import cell_len
from rich.console import Console

from driftrae_cli.cli import output
from driftrae_cli.cli.output import print_scores, print_text

METRICS = (
    ("FD-shapes-scorer-100", 0.91532, "0.9153"),
    ("FD-shapes-scorer-100 error", 0.4023, "0.4023"),
    ("precision (scorer:shapes-scorer)", 0.38, "0.38"),
    ("FD-vit_large_patch14_clip_quickgelu_224.openai-2k", 1234.56, "1235"),
    ("距離-猫", -0.5, "-0.5"),
    ("IS", float("nan"), "nan"),
    ("recall (rae:[bold]my/[/x] :star: autoencoder)", 1.0, "1"),
)
SETS = (("student shapes-student", 100, False), ("teacher [red]runs/猫[/y]", 50000, True))


@dataclass(frozen=True)
class Metric:
    name: str
    value: float


@dataclass(frozen=True)
class Score:
    name: str
    pictures: int
    metrics: tuple[Metric, ...]
    known: bool


@dataclass(frozen=True)
class Scores:
    reference: str
    results: str
    album: str | None
    scores: tuple[Score, ...]


@pytest.fixture
def shown(monkeypatch):
    """What is printed on a screen of some columns, or into a pipe where there are none."""

    def show(columns, print_it, *arguments, **options):
        file = io.StringIO()
        console = output.console

        def ours(*, stderr=False):
            # `console` is asked, so that a pipe gets the width that it has.
            with monkeypatch.context() as patch:
                patch.setattr(output, "Console", lambda **given: Console(**given, **to))
                return console()

        to = {"file": file}
        if columns:
            to |= {"force_terminal": True, "color_system": None, "width": columns}
        with monkeypatch.context() as patch:
            patch.setattr(output, "console", ours)
            print_it(*arguments, **options)
        return re.sub(r"\x1b\[\d*m", "", file.getvalue()).splitlines()

    return show


def result(count, sets=SETS, album=None):
    metrics = tuple(Metric(name, value) for name, value, _ in METRICS[:count])
    scores = tuple(Score(name, pictures, metrics, known) for name, pictures, known in sets)
    return Scores("shapes", "results.jsonl", album, scores)


def columns_of(lines):
    """Cells of a table, by the places where every line has a gap."""
    cells = ["".join(c * cell_len(c) for c in line) for line in lines]  # a place per column
    width = max(map(len, cells))
    padded = [line.ljust(width) for line in cells]
    gaps = [all(line[k : k + 2] == "  " for line in padded) for k in range(width)]
    starts = [0, *(k + 2 for k in range(width - 2) if gaps[k] and not gaps[k + 1])]
    ends = [*starts[1:], width]
    return [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in padded]


def doubled(text):
    return "".join(c * cell_len(c) for c in text)


def expected_table(count):
    names, values = [m[0] for m in METRICS[:count]], [m[2] for m in METRICS[:count]]
    return [
        [doubled(cell) for cell in row]
        for row in (
            ["pictures of", "pictures", *names],
            *([name, str(number), *values] for name, number, _ in SETS),
        )
    ]


def wide_enough(count):
    """Of the table on one line, counted by hand."""
    names = sum(max(cell_len(n), cell_len(v)) + 2 for n, _, v in METRICS[:count])
    return max(cell_len(name) for name, *_ in SETS) + 2 + len("pictures") + names + 2 + 9


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("columns", [40, 80, 200, None])
def test_scores_are_a_table_or_blocks_and_nothing_is_lost(shown, columns, count):
    lines = shown(columns, print_scores, result(count), as_json=False)
    assert lines[:2] == ["reference  shapes", "results    results.jsonl"]
    if columns is None or columns >= wide_enough(count):
        assert all(cell_len(line) <= wide_enough(count) for line in lines)
        table = columns_of(lines[2:])
        assert [row[: count + 2] for row in table] == expected_table(count)
        assert [row[count + 2 :] for row in table] == [[""], [""], ["as before"]]
        return
    width = max(cell_len(name) for name, *_ in METRICS[:count])
    block = [f"  {n}{' ' * (width - cell_len(n))}  {v}" for n, _, v in METRICS[:count]]
    assert lines[2:] == [
        "",
        "student shapes-student: 100 pictures",
        *block,
        "",
        "teacher [red]runs/猫[/y]: 50000 pictures, as before",
        *block,
    ]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_table_is_turned_when_it_is_one_column_too_wide(shown, count):
    wide = wide_enough(count)
    whole = shown(wide, print_scores, result(count), as_json=False)
    assert max(map(cell_len, whole)) == wide
    assert whole == shown(None, print_scores, result(count), as_json=False)
    assert shown(wide - 1, print_scores, result(count), as_json=False)[2] == ""


def test_numbers_stand_under_each_other(shown):
    head, *rows = shown(200, print_scores, result(2), as_json=False)[2:]
    end = head.index("error") + len("error")
    assert [row[:end].split()[-1] for row in (rows[0],)] == ["0.4023"]
    assert rows[0][:end].endswith("0.4023")


def test_sets_with_other_metrics(shown):
    first, second = Metric("FID", 2.0), Metric("accuracy", 0.5)
    both = Scores(
        "r", "f", "pages", (Score("a", 5, (first,), False), Score("b", 6, (second,), False))
    )
    lines = shown(None, print_scores, both, as_json=False)
    assert lines[2] == "album      pages"
    assert [line.split() for line in lines[3:]] == [
        ["pictures", "of", "pictures", "FID", "accuracy"],
        ["a", "5", "2", "-"],
        ["b", "6", "-", "0.5"],
    ]
    assert shown(20, print_scores, both, as_json=False)[3:] == [
        "", "a: 5 pictures", "  FID       2", "", "b: 6 pictures", "  accuracy  0.5",
    ]  # fmt: skip


# --- other tables


@dataclass(frozen=True)
class Row:
    file: str
    size_in_bytes: int | None
    said_of_it: str


@dataclass(frozen=True)
class Listing:
    out: str
    files: tuple[Row, ...]


LISTING = Listing(
    "x",
    (
        Row("a.safetensors", 12, "one two three four five six seven eight nine ten"),
        Row("[b]猫[/b].bin", None, ""),
    ),
)


def test_records_in_columns(shown):
    text = LISTING.files[0].said_of_it
    expected = [
        "out  x",
        "file           size in bytes  said of it",
        f"a.safetensors             12  {text}",
        "[b]猫[/b].bin              -",
    ]
    assert shown(None, print_text, LISTING) == expected
    assert shown(30 + len(text), print_text, LISTING) == expected


def test_long_texts_are_wrapped_between_words(shown):
    assert shown(50, print_text, LISTING)[1:] == [
        "file           size in bytes  said of it",
        "a.safetensors             12  one two three four",
        "                              five six seven eight",
        "                              nine ten",
        "[b]猫[/b].bin              -",
    ]


def test_records_become_blocks_where_a_word_would_be_cut(shown):
    text = LISTING.files[0].said_of_it
    assert shown(39, print_text, LISTING)[1:] == [
        "file           a.safetensors",
        "size in bytes  12",
        f"said of it     {text}",
        "",
        "file           [b]猫[/b].bin",
        "size in bytes  -",
        "said of it     ",
    ]
    assert shown(40, print_text, LISTING)[1] == "file           size in bytes  said of it"


@pytest.mark.parametrize("columns", [20, 40, 80, 200, None])
def test_a_long_hash_is_whole(shown, columns):
    digest = "0123456789abcdef" * 4
    long = Listing("x", (Row("student.safetensors", 2808920, digest),))
    assert any(line.endswith(digest) for line in shown(columns, print_text, long))


def test_names_of_rows_are_not_wrapped(shown):
    named = Listing("x", (Row("a long name of a file with spaces", 1, "y"),))
    lines = shown(50, print_text, named)
    assert lines[1] == "file           a long name of a file with spaces"


def test_a_text_of_several_lines_stays_in_its_row(shown):
    lines = shown(None, print_text, Listing("x", (Row("a\nb", 1, "c\td"),)))
    assert lines[1:] == ["file  size in bytes  said of it", "a b               1  c d"]


@dataclass(frozen=True)
class Space:
    space: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    group: str
    name: str
    values: tuple[str, ...]
    paper_vae: str
    paper_rae: str


def test_a_comparison_of_spaces(shown):
    line = Line("dispersion", "within a class", ("1.5 ± 0.1", "2.5"), "0.3", "0.9")
    grid = output._comparison_grid(
        type("A", (), {"spaces": (Space("shapes-rae"), Space("runs/a-long-name/rae"))}), (line,)
    )
    assert shown(None, lambda: grid.print(output.console())) == [
        "statistic         shapes-rae  runs/a-long-name/rae  SD-VAE (paper)  RAE (paper)",
        "dispersion",
        "  within a class  1.5 ± 0.1   2.5                   0.3             0.9",
    ]
    assert shown(60, lambda: grid.print(output.console())) == [
        "dispersion",
        "",
        "statistic             within a class",
        "shapes-rae            1.5 ± 0.1",
        "runs/a-long-name/rae  2.5",
        "SD-VAE (paper)        0.3",
        "RAE (paper)           0.9",
    ]
