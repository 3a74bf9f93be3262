"""Pictures in parquet files as Hugging Face `datasets` writes them: columns `image`, `label`.

Parquet is read a row group at a time, so pictures in order are quick; each picture from a
place of its own costs a whole row group. Encoding goes class by class, so it is quick where
a class's rows lie together, and slow where they are shuffled.
"""

import importlib
import json
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftrae_cli.data.class_map import read_class_map, refuse_class_map
from driftrae_cli.data.crop import UnreadableError, decode
from driftrae_cli.data.listing import Listing, Names, first_of_each, numbered_classes
from driftrae_cli.errors import DataError, printable, some

IMAGE, LABEL = "image", "label"
_SPLIT = re.compile(r"(train|training|validation|val|valid|dev|test)\b")


@dataclass(frozen=True)
class ParquetSource:
    """Pictures as rows of parquet files; an `ImageSource`.

    Attributes:
        files: their paths.
        group_ends: for each file, the row of the file behind each of its row groups.
        file: [N], which file a row is in.
        place: [N], which of the file's rows it is.
    """

    image_size: int
    class_names: tuple[str, ...]
    numbered: bool
    fingerprint: str
    labels: Tensor
    files: tuple[str, ...]
    group_ends: tuple[list[int], ...]
    file: np.ndarray
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return printable(f"{self.files[self.file[row]]}: row {self.place[row]}")

    def read(self, row: int) -> Tensor:
        number, place = int(self.file[row]), int(self.place[row])
        ends = self.group_ends[number]
        group = bisect_right(ends, place)
        try:
            images = _group_images(self.files[number], group)
            value = images[place - (ends[group - 1] if group else 0)].as_py()
            content = value["bytes"] if isinstance(value, dict) else value
            if content is None:
                raise UnreadableError("holds no bytes of a picture, at most the path of one")
            return decode(content, self.image_size)
        except UnreadableError as error:
            raise DataError(f"{self.name(row)}: {error}") from error
        except (OSError, ValueError, LookupError) as error:  # Arrow's errors are among these
            raise DataError(f"{self.name(row)}: cannot be read ({_first_line(error)})") from error


@dataclass(frozen=True)
class _Table:
    """What one parquet file says without its pictures."""

    path: str
    labels: Tensor
    class_names: tuple[str, ...] | None
    group_ends: list[int]


def open_parquet(
    paths: Sequence[str], image_size: int, per_class: int | None, class_map: Path | None
) -> ParquetSource:
    """List the pictures of parquet files, in their order.

    Classes have the names that `datasets` stores for a `ClassLabel` column, else numbers.
    `class_map` renumbers those with names.

    Raises:
        DataError: pyarrow is missing, a file is damaged or lacks a column, the files are
            several splits of a data set, a class has no pictures, or `class_map` does not fit.
    """
    _check_splits(paths)
    tables = [_read_table(path) for path in paths]
    where = printable(paths[0] if len(paths) == 1 else os.path.dirname(paths[0]))
    labels = torch.cat([table.labels for table in tables])
    if not len(labels):
        raise DataError(f"{where}: holds no rows")
    if any(table.class_names != tables[0].class_names for table in tables):
        raise DataError(f"{where}: the parquet files name the classes differently; use one of them")
    names = tables[0].class_names
    if names is None:
        refuse_class_map(class_map, where)
        class_names = numbered_classes(labels, where)
    else:
        _check_named(labels, names, where)
        class_names = read_class_map(class_map, names) if class_map else names
        number = {name: k for k, name in enumerate(class_names)}
        labels = torch.tensor([number[name] for name in names])[labels]
    kept = first_of_each(labels, per_class)
    counts = torch.tensor([len(table.labels) for table in tables])
    file = torch.arange(len(tables)).repeat_interleave(counts)[kept].numpy()
    place = torch.cat([torch.arange(count) for count in counts.tolist()])[kept].numpy()
    sizes = np.array([os.path.getsize(path) for path in paths], dtype=np.int64)
    bases = [os.path.basename(path) for path in paths]
    rows = Names(f"{bases[i]}/{row}" for i, row in zip(file, place, strict=True))
    listing = Listing(rows, sizes[file], labels[kept])
    return ParquetSource(
        image_size,
        class_names,
        names is None,
        listing.fingerprint("parquet", image_size, per_class, class_names),
        listing.labels,
        tuple(paths),
        tuple(table.group_ends for table in tables),
        file,
        place,
    )


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install 'driftrae[parquet]'") from error


def _check_splits(paths: Sequence[str]) -> None:
    """`datasets` puts all splits into one folder; a class's test pictures are not for training."""
    found = {m[1] for path in paths if (m := _SPLIT.match(os.path.basename(path)))}
    if len(found) > 1:
        raise DataError(
            f"{printable(os.path.dirname(paths[0]))}: parquet files of several splits "
            f"({', '.join(sorted(found))}); put the files of one into a folder of their own"
        )


def _read_table(path: str) -> _Table:
    parquet = _pyarrow("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow)
            column = file.read(columns=[LABEL]).column(LABEL)
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            names = _class_names(file.schema_arrow.metadata or {})
    except (OSError, ValueError) as error:  # Arrow's errors are among these
        raise DataError(
            f"{printable(path)}: not a parquet file, or a damaged one ({_first_line(error)})"
        ) from error
    if column.null_count:
        raise DataError(f"{printable(path)}: {column.null_count} rows have no {LABEL}")
    labels = torch.from_numpy(column.to_numpy().astype(np.int64))
    return _Table(path, labels, names, list(accumulate(groups)))


def _check_columns(path: str, schema: Any) -> None:
    types = _pyarrow("pyarrow").types
    image = schema.field(IMAGE).type if IMAGE in schema.names else None
    if image is not None and types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    label = schema.field(LABEL).type if LABEL in schema.names else None
    of_bytes = image is not None and (types.is_binary(image) or types.is_large_binary(image))
    if not of_bytes or label is None or not types.is_integer(label):
        there = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{printable(path)}: needs the columns {IMAGE} (bytes of picture files) and {LABEL} "
            f"(whole numbers); there: {there}"
        )


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """Names of a `ClassLabel` column, from what `datasets` writes into the schema."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][LABEL]
        return tuple(str(name) for name in feature["names"])
    except (LookupError, ValueError, TypeError):
        return None


def _check_named(labels: Tensor, names: tuple[str, ...], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: several classes of the same name: {some(twice)}")
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0 or largest >= len(names):
        wrong = smallest if smallest < 0 else largest
        raise DataError(
            f"{where}: a picture of class {wrong}, but the {len(names)} classes have the numbers "
            f"0 to {len(names) - 1}; test pictures without a class are of no use here"
        )
    present = set(labels.unique().tolist())
    empty = [name for number, name in enumerate(names) if number not in present]
    if empty:
        raise DataError(f"{where}: no pictures of class {some(empty)}; add the files that lack")


@lru_cache(maxsize=1)  # for each process: neighbouring rows are in one group
def _group_images(path: str, group: int) -> Any:
    with _pyarrow("pyarrow.parquet").ParquetFile(path) as file:
        return file.read_row_group(group, columns=[IMAGE], use_threads=False).column(IMAGE)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
