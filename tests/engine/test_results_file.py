"""Numbers are found again by what they depend on."""

from pathlib import Path

import pytest

from driftrae_cli.engine.results_file import Record, append, find
from driftrae_cli.errors import OutputError

REQUEST = {"weights": "abc", "pictures": 50_000, "extractors": ["inception"]}


def test_the_newest_result_of_the_same_request_is_found(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "results.jsonl"
    assert find(file, REQUEST) is None
    append(file, Record(REQUEST, {"FID": 2.0}, {"seconds": 1}))
    append(file, Record({**REQUEST, "pictures": 10_000}, {"FID": 9.0}, {}))
    append(file, Record(REQUEST, {"FID": 1.5}, {"seconds": 2}))
    found = find(file, dict(reversed(REQUEST.items())))
    assert found and found.result == {"FID": 1.5} and found.about == {"seconds": 2}
    assert find(file, {**REQUEST, "weights": "abd"}) is None
    assert len(file.read_text().splitlines()) == 3


def test_a_line_cut_short_harms_no_other(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    append(file, Record(REQUEST, {"FID": 1.0}, {}))
    whole = file.read_text()
    file.write_text(whole + whole[: len(whole) // 2])
    append(file, Record({"weights": "new"}, {"FID": 3.0}, {}))
    first, second = find(file, REQUEST), find(file, {"weights": "new"})
    assert first and second and (first.result, second.result) == ({"FID": 1.0}, {"FID": 3.0})


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="results: cannot be written"):
        (tmp_path / "results").mkdir()
        append(tmp_path / "results", Record(REQUEST, {}, {}))
