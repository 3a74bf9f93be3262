"""What pictures are compared with: a file of statistics, or real pictures that are measured."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.sources import SHAPES
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.class_match import first_difference
from driftrae_cli.engine.digest import digest_of
from driftrae_cli.engine.extractors import INCEPTION, Extractor
from driftrae_cli.engine.feature_statistics import FeatureStatistics, go_through
from driftrae_cli.engine.latent_data import open_pictures
from driftrae_cli.engine.obtain import cache_folder
from driftrae_cli.engine.picture_sets import PictureSet, from_arrays, from_files, is_arrays
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.results_file import check_writable
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError, OutputError
from driftrae_cli.fidelity.references import (
    Reference,
    check_matches,
    read_npz,
    read_reference,
    write_reference,
)
from driftrae_cli.files import make_folder

REFERENCE_SEED = 1_000_003  # of `shapes` that no training run has seen
SHAPES_PER_CLASS = 200
_UNSAID = "unsaid"  # crop of an .npz file


@dataclass(frozen=True)
class RefStatsResult:
    """What `ref-stats` wrote.

    Attributes:
        out: the file.
        features: extractor.
        resolution: rows and columns of the pictures.
        pictures: how many were measured.
        sha256: of the file.
    """

    out: str
    features: str
    resolution: int
    pictures: int
    sha256: str


def check_output(out: Path, overwrite: bool) -> None:
    """Before anything is loaded or measured.

    Raises:
        OutputError: `out` is no name for such a file, it exists and `overwrite` is off, or it
            cannot be written.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"--out {out}: give a .safetensors file")
    if out.exists() and not overwrite:
        raise OutputError(f"--out {out}: exists already; choose another or add --overwrite")
    check_writable(out)


def make_reference(
    data: DataConfig, size: int, extractor: Extractor, out: Path, *, keep: bool,
    reporter: Reporter, world: World,
) -> RefStatsResult:  # fmt: skip
    """Measure real pictures and write their statistics. Collective; see `check_output` first.

    Args:
        size: rows and columns they are cut to.
        keep: whether to write the features of all, for precision and recall.

    Raises:
        DataError: pictures are missing or unreadable.
        OutputError: `out` cannot be written.
    """
    pictures = _pictures(data, size, reporter)
    [found] = go_through(pictures, [extractor], reporter, world, keep=keep)
    reference = _reference(found, pictures, extractor, data.source)

    def write() -> Reference:
        make_folder(out.parent)
        write_reference(out, reference)
        return read_reference(out)

    written = world.on_main(write)
    return RefStatsResult(
        str(out), extractor.name, size, reference.count or 0, written.sha256 or ""
    )


def _pictures(data: DataConfig, size: int, reporter: Reporter) -> PictureSet:
    source = open_pictures(data, size)
    bad = BadFiles(data.max_bad, reporter.message)
    return from_files(data.source, source, bad, reporter)


def _reference(
    found: FeatureStatistics, pictures: PictureSet, extractor: Extractor, source: str
) -> Reference:
    return Reference(
        stats=found.stats,
        extractor=extractor.name,
        resolution=pictures.size,
        crop=pictures.crop,
        count=found.stats.count,
        source=source,
        weights=extractor.sha256,
        spatial=found.spatial,
        features=found.features,
    )


class Singles(NamedTuple):
    """What an extractor says of single pictures.

    Attributes:
        features: [M, F] float32 on the CPU.
        rows: [M] positions of the pictures in their set; None where only features were kept.
    """

    features: Tensor
    rows: Tensor | None


@dataclass(frozen=True)
class OpenReference:
    """What pictures are compared with.

    Attributes:
        statistics: of real pictures.
        pictures: some or all of them; None where only statistics are there.
        measured: of `pictures`, where they were measured just now and features were kept.
    """

    statistics: Reference
    pictures: PictureSet | None
    measured: FeatureStatistics | None = None

    def singles(self, extractor: Extractor, reporter: Reporter, world: World) -> Singles:
        """Features of single real pictures. Collective.

        Raises:
            ConfigError: there are statistics only.
            DataError: the pictures cannot be read.
        """
        if self.statistics.features is not None:
            return Singles(self.statistics.features, None)
        found = self.measured
        if found is None:
            pictures = self.check_pictures()
            [found] = go_through(pictures, [extractor], reporter, world, keep=True)
        assert found.features is not None, "they were kept"
        return Singles(found.features, found.rows)

    def check_singles(self) -> None:
        """Check that features of single real pictures can be had.

        Raises:
            ConfigError: there are statistics only.
        """
        if self.statistics.features is None:
            self.check_pictures()

    def check_pictures(self) -> PictureSet:
        """The real pictures.

        Raises:
            ConfigError: there are statistics only.
        """
        if self.pictures is None:
            raise ConfigError(
                f"{self.statistics.file}: has statistics only, and single real pictures are asked "
                "for; give an .npz file with pictures, real pictures, or for precision and recall "
                "a file that driftrae ref-stats --keep-features has made"
            )
        return self.pictures


def open_reference(
    given: str, pictures: PictureSet, extractor: Extractor, max_bad: int, reporter: Reporter,
    world: World, *, keep: bool = False,
) -> OpenReference:  # fmt: skip
    """The reference that `pictures` are compared with. Collective.

    Args:
        given: a file of ours, an `.npz` file, or real pictures, whose statistics are kept in the
            cache for the next time.
        keep: whether features of single pictures will be asked for; where pictures are measured
            now, they need not be read again for it.

    Raises:
        ConfigError: it was made with another extractor, resolution or crop, or its classes are
            others than those of the pictures, and they matter.
        DataError: it is damaged, or the pictures are.
    """
    file = Path(given).expanduser()  # a shell leaves `--ref=~/…` as it is
    if file.suffix == ".safetensors":
        opened = OpenReference(read_reference(file), None)
    elif is_arrays(given):
        opened = _published(file, pictures, extractor)
    else:
        opened = _measured(given, pictures, extractor, max_bad, reporter, world, keep)
    found = opened.statistics
    # Generated pictures are not cut; an .npz file does not say how its pictures were.
    alike = pictures.crop == "none" or found.crop == _UNSAID
    crop = found.crop if alike else pictures.crop
    check_matches(found, extractor.name, extractor.sha256, pictures.size, crop)
    return opened


def _published(file: Path, pictures: PictureSet, extractor: Extractor) -> OpenReference:
    if extractor.name != INCEPTION:
        raise ConfigError(
            f"--ref {file}: statistics in .npz files are those of Inception, not of "
            f"{extractor.name}; give real pictures, or statistics from driftrae ref-stats"
        )
    found = read_npz(
        file, extractor=INCEPTION, features=extractor.features, resolution=pictures.size,
        crop=_UNSAID,
    )  # fmt: skip
    images = from_arrays(found.images, found.sha256 or "") if found.images else None
    return OpenReference(found, images)


def _measured(
    given: str, like: PictureSet, extractor: Extractor, max_bad: int, reporter: Reporter,
    world: World, keep: bool,
) -> OpenReference:  # fmt: skip
    """From the cache, if these very pictures were measured before."""
    drawn = SHAPES_PER_CLASS if given == SHAPES else None
    data = DataConfig(source=given, per_class=drawn, seed=REFERENCE_SEED, max_bad=max_bad)
    pictures = _pictures(data, like.size, reporter)
    if extractor.classes is not None:
        _check_classes(like, pictures, given)
    made_of = {
        **world.on_main(lambda: dict(pictures.identity)),  # one process hashes the files
        "extractor": extractor.name,
        "weights": extractor.sha256,
        "size": str(like.size),
    }
    file = cache_folder() / "references" / f"{digest_of(made_of)[:32]}.safetensors"
    if world.share(file.exists()):
        known = read_reference(file)
        if pictures.count - (known.count or 0) <= max_bad:  # of which not all may be readable
            return OpenReference(known, pictures)
    [found] = go_through(pictures, [extractor], reporter, world, keep=keep)
    # Features of ImageNet's training set would fill 10 GB: they stay out of the file.
    reference = replace(_reference(found, pictures, extractor, given), features=None)

    def write() -> None:
        make_folder(file.parent)
        write_reference(file, reference)

    world.on_main(write)
    return OpenReference(read_reference(file), pictures, found if keep else None)


def _check_classes(pictures: PictureSet, real: PictureSet, given: str) -> None:
    """Class accuracy compares numbers, so these must mean the same everywhere.

    Raises:
        ConfigError: the real pictures have other classes.
    """
    its, ours = pictures.class_names, real.class_names
    if its is None or ours is None or its == ours or pictures.numbered or real.numbered:
        return
    number, one, other = first_difference(its, ours)
    raise ConfigError(
        f"{pictures.name} and the reference {given} have different classes: class {number} is "
        f"{one} for the one and {other} for the other. Compare it with the data it was trained on."
    )
