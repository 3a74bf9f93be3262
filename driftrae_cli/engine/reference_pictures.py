"""What pictures are compared with: a file of statistics, or real pictures that are measured."""

from dataclasses import dataclass
from pathlib import Path

from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.sources import SHAPES
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.digest import digest_of
from driftrae_cli.engine.evaluate import REFERENCE_SEED
from driftrae_cli.engine.extractors import INCEPTION, Extractor
from driftrae_cli.engine.feature_statistics import FeatureStatistics, go_through
from driftrae_cli.engine.latent_data import open_pictures
from driftrae_cli.engine.obtain import cache_folder
from driftrae_cli.engine.picture_sets import PictureSet, from_files
from driftrae_cli.engine.report import Reporter
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

_UNSAID = "unsaid"  # crop of an .npz file
_SHAPES_PER_CLASS = 1000


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


def make_reference(
    data: DataConfig, size: int, extractor: Extractor, out: Path, *, keep: bool,
    overwrite: bool, reporter: Reporter, world: World,
) -> RefStatsResult:  # fmt: skip
    """Measure real pictures and write their statistics. Collective.

    Args:
        size: rows and columns they are cut to.
        keep: whether to write the features of all, for precision and recall.

    Raises:
        DataError: pictures are missing or unreadable.
        OutputError: `out` exists and `overwrite` is off, or it cannot be written.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"--out {out}: give a .safetensors file")
    if out.exists() and not overwrite:
        raise OutputError(f"--out {out}: exists already; choose another or add --overwrite")
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
    return from_files(data.source, source, BadFiles(data.max_bad, reporter.message))


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
        spatial=found.spatial,
        features=found.features,
    )


def open_reference(
    given: str, pictures: PictureSet, extractor: Extractor, max_bad: int, reporter: Reporter,
    world: World,
) -> Reference:  # fmt: skip
    """The reference that `pictures` are compared with. Collective.

    Args:
        given: a file of ours, an `.npz` file, or real pictures, whose statistics are kept in the
            cache for the next time.

    Raises:
        ConfigError: it was made with another extractor, resolution or crop.
        DataError: it is damaged, or the pictures are.
    """
    file = Path(given)
    if file.suffix == ".safetensors":
        found = read_reference(file)
    elif file.suffix == ".npz":
        found = _published(file, pictures, extractor)
    else:
        found = _measured(given, pictures.size, extractor, max_bad, reporter, world)
    # Generated pictures are not cut; an .npz file does not say how its pictures were.
    alike = pictures.crop == "none" or found.crop == _UNSAID
    check_matches(found, extractor.name, pictures.size, found.crop if alike else pictures.crop)
    return found


def _published(file: Path, pictures: PictureSet, extractor: Extractor) -> Reference:
    if extractor.name != INCEPTION:
        raise ConfigError(
            f"--ref {file}: statistics in .npz files are those of Inception, not of "
            f"{extractor.name}; give real pictures, or statistics from driftrae ref-stats"
        )
    return read_npz(
        file, extractor=INCEPTION, features=extractor.features, resolution=pictures.size,
        crop=_UNSAID,
    )  # fmt: skip


def _measured(
    given: str, size: int, extractor: Extractor, max_bad: int, reporter: Reporter, world: World
) -> Reference:
    """From the cache, if these very pictures were measured before."""
    drawn = _SHAPES_PER_CLASS if given == SHAPES else None
    data = DataConfig(source=given, per_class=drawn, seed=REFERENCE_SEED, max_bad=max_bad)
    pictures = _pictures(data, size, reporter)
    made_of = {**pictures.identity, "extractor": extractor.sha256, "size": str(size)}
    key = digest_of(made_of)[:32]
    file = cache_folder() / "references" / f"{key}.safetensors"
    if not world.share(file.exists()):
        [found] = go_through(pictures, [extractor], reporter, world)
        reference = _reference(found, pictures, extractor, given)

        def write() -> None:
            make_folder(file.parent)
            write_reference(file, reference)

        world.on_main(write)
    return read_reference(file)
