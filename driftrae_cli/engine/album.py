"""Pictures of what is scored: random samples, and real pictures that resemble some.

Legend: Q pictures shown, M real pictures, K nearest, F features.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.engine.nearest_pictures import number, save_nearest
from driftrae_cli.engine.picture_sets import PictureSet
from driftrae_cli.engine.pictures import save_grid
from driftrae_cli.engine.reference_pictures import Singles
from driftrae_cli.engine.runtime import generator
from driftrae_cli.errors import ConfigError, OutputError
from driftrae_cli.fidelity.nearest import nearest, spacing
from driftrae_cli.files import make_folder

_COLUMNS, _SAMPLES = 8, 64
_SUSPICIOUS = 8  # pictures that are nearest to real ones
_LONGEST_STEM = 80
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Album:
    """A folder with two PNGs for each set of pictures.

    Attributes:
        folder: where they go.
        nearest: K real pictures beside each of those that resemble real ones most; 0 for none.
        overwrite: whether to replace what is there.
    """

    folder: Path
    nearest: int = 0
    overwrite: bool = False

    def prepare(self, names: Sequence[str]) -> None:
        """Before anything is computed, refuse a folder in which the files exist.

        Args:
            names: of all sets.

        Raises:
            OutputError: files exist and `overwrite` is off, two sets would have the same, or the
                folder cannot be made.
        """
        stems = Counter(_stem(name) for name in set(names))
        [(stem, count)] = stems.most_common(1)
        if count > 1:
            raise OutputError(
                f"--album {self.folder}: {count} sets would be called {stem}; score them alone"
            )
        make_folder(self.folder)
        there = [file for name in names for file in self.files(name) if file.exists()]
        if there and not self.overwrite:
            raise OutputError(
                f"--album {self.folder}: {there[0].name} exists already; choose another folder or "
                "add --overwrite"
            )

    def check_enough(self, real: int) -> None:
        """Check that there are as many real pictures as are to be shown beside each.

        Raises:
            ConfigError: there are fewer.
        """
        if real < self.nearest:
            raise ConfigError(
                f"--nearest {self.nearest}: the reference has {real} pictures; ask for fewer, or "
                "give more real pictures"
            )

    def files(self, name: str) -> list[Path]:
        """Of the set of that name."""
        kinds = ("samples", "nearest") if self.nearest else ("samples",)
        return [self.folder / f"{_stem(name)}-{kind}.png" for kind in kinds]

    def save_samples(self, pictures: PictureSet, seed: int) -> None:
        """A grid of random pictures of a set.

        Raises:
            DataError, NumericsError: a picture cannot be read or made.
            OutputError: the file cannot be written.
        """
        order = torch.randperm(pictures.count, generator=generator(seed, "album"))
        rows = sorted(order[:_SAMPLES].tolist())
        save_grid(self.files(pictures.name)[0], pictures.pick(rows), _COLUMNS)

    def save_nearest(
        self,
        pictures: PictureSet,
        found: Singles,
        real: PictureSet,
        real_found: Singles,
        extractor: str,
        device: torch.device,
        seed: int,
    ) -> None:
        """Pictures of a set that resemble real ones most, each with the nearest real ones.

        Args:
            found: features of all pictures of the set.
            real_found: of all real ones.
            extractor: what the features are called.
            device: where distances are computed.
            seed: of the choice of real pictures that give the typical distance.

        Raises:
            NumericsError: fewer real pictures than are asked for.
            OutputError: the file cannot be written.
        """
        real_MF = real_found.features.to(device)
        near = nearest(found.features.to(device), real_MF, self.nearest)
        index, distance = near.index.cpu(), near.distance.cpu()
        shown = distance[:, 0].argsort(stable=True)[:_SUSPICIOUS]
        wanted = _positions(real_found, index[shown].flatten())
        twins = real.pick(wanted).unflatten(0, (len(shown), self.nearest))
        save_nearest(
            self.files(pictures.name)[1],
            pictures.pick(_positions(found, shown)),
            twins,
            distance[shown],
            extractor,
            _notes(len(shown), len(distance), real_MF, seed),
        )


def _notes(shown: int, of: int, real_MF: Tensor, seed: int) -> list[str]:
    """What is shown, and how near real pictures are to each other, for comparison."""
    notes = [
        f"The {shown} of {of:,} generated pictures that are nearest to a real one, closest first."
    ]
    if len(real_MF) > 1:
        s = spacing(real_MF, seed)
        notes.append(
            f"From a real picture to the nearest other one: median {number(s.median)}, "
            f"smallest of {s.samples:,} {number(s.smallest)}."
        )
    return notes


def _positions(found: Singles, which: Tensor) -> list[int]:
    """Rows of the set, of which features were found."""
    assert found.rows is not None, "the features are of pictures that are there"
    return found.rows[which].tolist()


def _stem(name: str) -> str:
    # The end tells sets apart; a file system takes no name above 255 bytes.
    return _UNSAFE.sub("-", name)[-_LONGEST_STEM:].strip("-.")
