"""Published weights -> one safetensors file of ours that says where it comes from."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from driftrae_cli.errors import ConfigError, OutputError, WeightsError
from driftrae_cli.flow.path import shift_for
from driftrae_cli.hub import LocalFile
from driftrae_cli.models.containers import Container, read_container
from driftrae_cli.models.decoder import ViTDecoder
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.encoder import ViTEncoder
from driftrae_cli.models.published import Published, assemble_rae, interpret
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.statistics import Statistics, save_statistics
from driftrae_cli.models.weights import FORMAT, OWN_ENTRIES, save_model, write_tensors

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Conversion:
    """A file that was written.

    Attributes:
        out: its path.
        kind: what it holds; see `Published`.
        layout: who wrote its sources and how, in words.
        latent: channels, rows and columns of the latents it is for.
        parameters: of its network.
        size: bytes.
        sha256: of the file.
    """

    out: str
    kind: str
    layout: str
    latent: tuple[int, ...] | None
    parameters: int
    size: int
    sha256: str


def convert_files(
    source: Path,
    out: Path,
    *,
    encoder: Path | None = None,
    statistics: Path | None = None,
    input_size: int | None = None,
    heads: int | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    hashes: Mapping[Path, str] | None = None,
) -> Conversion:
    """Write what `source` holds as one file of ours at `out`.

    Args:
        source: a file or folder in any format that `read_published` reads.
        out: a `.safetensors` file.
        encoder: the encoder of the decoder in `source`; the result is an autoencoder then.
        statistics: of the latents of this autoencoder, or of the one in `source`.
        input_size: rows and columns of pixels that the encoder sees; by default as many as
            the decoder has patches for.
        heads: attention heads, where `source` does not tell them.
        metadata: header entries, which win over the derived ones.
        overwrite: replace `out`.
        hashes: SHA-256 of files that may be read, where it has been computed.

    A file of ours keeps what it says of its source; where it was copied from is added.

    Raises:
        WeightsError: a source that cannot be read, or parts that do not belong together.
        ConfigError: options that do not go with this source.
        OutputError: `out` exists, or cannot be written.
        HubError: a file in the Hub's cache is damaged.
    """
    _prepare(out, overwrite)
    read = read_container(source)
    found = interpret(read, heads=heads)
    files = _named("", read)
    if encoder is not None:
        found, more = _with_encoder(found, source, encoder, statistics, input_size)
        files += more
    elif statistics is not None and input_size is None:
        found, more = _with_statistics(found, source, statistics)
        files += more
    elif input_size is not None:
        found = _at_size(found, input_size)
    given = {"source": str(source), **(metadata or {})}
    header = {
        **found.metadata,
        "layout": found.metadata.get("layout", found.layout),
        **_teacher_entries(found),
    }
    if found.layout == FORMAT:
        for _, path in files:
            LocalFile.at(path).checked()
        header |= {"copied_from": given.pop("source"), **given}
        _copy(read, found, header, out)
    else:
        known = hashes or {}
        sha256 = {name: known.get(path) or LocalFile.at(path).sha256 for name, path in files}
        header |= {"source_sha256": json.dumps(sha256), **given}
        _write(out, found, header)
    return Conversion(
        out=str(out),
        kind=found.kind,
        layout=header["layout"],
        latent=found.latent,
        parameters=found.parameters,
        size=out.stat().st_size,
        sha256=LocalFile(out).sha256,
    )


def _prepare(out: Path, overwrite: bool) -> None:
    if out.suffix != ".safetensors" or out.is_dir():
        raise OutputError(f"{out}: name a file that ends in .safetensors")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another name or add --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from error


def _named(prefix: str, read: Container) -> list[tuple[str, Path]]:
    return [(f"{prefix}{file.name}", file) for file in read.files]


def _with_encoder(
    found: Published, source: Path, encoder: Path, statistics: Path | None, input_size: int | None
) -> tuple[Published, list[tuple[str, Path]]]:
    """The autoencoder of these parts, and the files that were read for it."""
    if not isinstance(found.content, ViTDecoder):
        raise ConfigError(f"--encoder: goes with a decoder, and {source} is of kind {found.kind}")
    read = read_container(encoder)
    part, files, layouts = interpret(read), _named("encoder/", read), [found.layout]
    if not isinstance(part.content, ViTEncoder):
        raise ConfigError(f"--encoder {encoder}: is of kind {part.kind}, not an encoder")
    layouts.append(part.layout)
    latents = None
    if statistics is not None:
        read = read_container(statistics)
        latents = _statistics(read)
        files += _named("statistics/", read)
    layouts.append("latent statistics" if latents else "no latent statistics")
    try:
        rae = assemble_rae(part.content, found.content, latents, input_size)
    except WeightsError as error:
        raise WeightsError(f"{source} with {encoder}: {error}") from error
    return Published("rae", " + ".join(layouts), rae), files


def _with_statistics(
    found: Published, source: Path, statistics: Path
) -> tuple[Published, list[tuple[str, Path]]]:
    """An autoencoder with other statistics, and the files that were read for it."""
    rae = found.content
    if not isinstance(rae, RAE):
        raise ConfigError(
            f"--stats: statistics go into an autoencoder, and {source} is of kind {found.kind}; "
            "give one, or a decoder with --encoder"
        )
    read = read_container(statistics)
    latents = _statistics(read)
    if latents.shape != rae.latent_shape:
        shapes = ["x".join(map(str, shape)) for shape in (latents.shape, rae.latent_shape)]
        raise WeightsError(f"{statistics}: is for latents of {shapes[0]}, {source} has {shapes[1]}")
    rae.set_statistics(latents.mean, latents.var)
    layout = f"{found.metadata.get('layout', found.layout)} + latent statistics"
    entries = {**found.metadata, "layout": layout}
    return Published(found.kind, layout, rae, entries), _named("statistics/", read)


def _statistics(read: Container) -> Statistics:
    found = interpret(read)
    if not isinstance(found.content, Statistics):
        raise ConfigError(
            f"--stats {read.path}: is of kind {found.kind}, not statistics of latents"
        )
    return found.content


def _at_size(found: Published, input_size: int) -> Published:
    if not isinstance(found.content, ViTEncoder) or found.layout == FORMAT:
        raise ConfigError("--input-size: is for an encoder, or a decoder with --encoder")
    return Published(found.kind, found.layout, found.content.resampled(input_size))


def _teacher_entries(found: Published) -> dict[str, str]:
    """What a published teacher is known to be; one of ours says it itself."""
    if not isinstance(found.content, DiTDH) or found.layout == FORMAT:
        return {}
    config = found.content.config
    shift = shift_for(config.in_channels * config.input_size**2)
    names = class_names(config.num_classes)
    return {"role": "teacher", "time_shift": repr(shift), "class_names": json.dumps(names)}


def class_names(count: int) -> list[str]:
    """Names for classes that are only known by number.

    A thousand are taken for ImageNet-1k's and get its synset ids, in the usual order.
    """
    if count == _IMAGENET_CLASSES:
        from timm.data import ImageNetInfo

        return list(ImageNetInfo().label_names())
    return [str(number) for number in range(count)]


def _copy(read: Container, found: Published, header: Mapping[str, str], out: Path) -> None:
    """Write a file of ours again, in its own precision."""
    own = {name: read.header[name] for name in OWN_ENTRIES if name in read.header}
    entries = {**header, **own}
    if "rae" in entries and entries["rae"] == found.metadata.get("rae"):
        entries["rae"] = _moved(entries["rae"], read.files[-1].parent, out.parent)
    write_tensors(out, {n: t for n, t in read.tensors.items() if t is not None}, entries)


def _moved(reference: str, old: Path, new: Path) -> str:
    """A reference to a file beside `old`, from `new`; names that mean no file stay."""
    file = old / reference
    if not file.is_file():
        return reference
    relative = os.path.relpath(file.parent.resolve() / file.name, new.resolve())
    return os.path.join(".", relative)  # or it might be taken for a built-in name


def _write(out: Path, found: Published, header: Mapping[str, str]) -> None:
    match found.content:
        case Statistics():
            save_statistics(out, found.content, header)
        case RAE() | DiTDH() | ViTEncoder() | ViTDecoder():
            save_model(out, found.content, found.kind, found.content.config, header)
        case _:
            raise TypeError(f"{type(found.content).__name__} is not among published networks")
