"""Where weights come from: a reference becomes a local file or folder; and back to the Hub.

A reference is a built-in name, a local path, or `hf://org/repo[/path/in/repo][@revision]`.
A built-in name wins over a file of that name; write `./name` for the file.
"""

import difflib
import glob
import logging
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from driftrae_cli.errors import HubError, WeightsError
from driftrae_cli.hub.explain import (
    LOG_IN,
    FolderError,
    explained,
    file_names,
    files_in,
    out_of_reach,
    told_files,
)
from driftrae_cli.hub.places import HUB, HubPlace, LocalFile, name_a_file, parse, weights_among
from driftrae_cli.hub.resume import download

__all__ = [
    "BUILT_IN",
    "HUB",
    "HubPlace",
    "LocalFile",
    "check_login",
    "locate",
    "name_a_file",
    "parse",
    "resolve",
    "upload",
]

# Of what these warn of, our own messages say what matters; retries are told by another.
for _name in ("_snapshot_download", "_tree_cache", "file_download"):
    logging.getLogger(f"huggingface_hub.{_name}").setLevel(logging.ERROR)

_SHAPES = Path(__file__).parents[1] / "assets" / "shapes"

BUILT_IN = {
    "shapes-rae": _SHAPES / "rae.safetensors",
    "shapes-teacher": _SHAPES / "teacher.safetensors",
    "shapes-student": _SHAPES / "student.safetensors",
    "shapes-scorer": _SHAPES / "scorer.safetensors",
    "shapes-vae": _SHAPES / "vae.safetensors",
    "shapes-vae-teacher": _SHAPES / "vae-teacher.safetensors",
}

# What loading needs of a folder; pickled files only where nothing better is.
_LOADED = ("config.json", "config.yaml", "*.safetensors", "*.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "diffusion_pytorch_model.bin")
_DIFFUSERS = "diffusion_pytorch_model."  # its readers take a folder, and find the file themselves


def locate(reference: str, known: Collection[str] = ()) -> Path:
    """Find the file or folder that `reference` names, downloading it if it is on the Hub.

    Of a whole repository or a folder in one, only what loading needs is downloaded: weights
    and configuration, no sub-folders. Where one file in it is all that can be meant, and others
    have been downloaded before, it is that file.

    Args:
        reference: see above.
        known: further names, to suggest where there is no such file.

    Raises:
        WeightsError: there is no such local file or folder.
        HubError: the Hub does not have it, does not give it, or cannot be reached.
    """
    if reference.startswith(HUB):
        return _on_hub(parse(reference))
    path = BUILT_IN.get(reference, Path(reference))
    if path.exists():
        return path
    if reference in BUILT_IN:
        raise WeightsError(f"{reference}: this installation lacks the built-in model ({path})")
    raise WeightsError(_no_such_file(reference, path, (*BUILT_IN, *known)))


def resolve(reference: str) -> LocalFile:
    """Find the one file that `reference` names, downloading it if it is on the Hub.

    Raises:
        WeightsError: there is no such local file, or it is a folder.
        HubError: the Hub does not have it, does not give it, or cannot be reached.
    """
    if reference.startswith(HUB):
        place = parse(reference)
        if not place.path:
            names = files_in(place) or _names_in(_folder(place))
            raise HubError(f"{reference}: {name_a_file(names)}")
        return LocalFile.at(_file(place))
    path = locate(reference)
    if path.is_dir():
        raise WeightsError(f"{reference}: {name_a_file([p.name for p in path.iterdir()])}")
    return LocalFile.at(path)


def _no_such_file(reference: str, path: Path, names: Collection[str]) -> str:
    lines = [f"{reference}: no such file"]
    near = difflib.get_close_matches(reference, names, n=1)
    if path.parent.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.is_file()]
        near += [str(path.parent / n) for n in difflib.get_close_matches(path.name, beside, n=3)]
    elif len(path.parts) > 1:
        lines[0] += f"; there is no folder {path.parent} either"
    if near:
        lines.append(f"Did you mean {' or '.join(near)}?")
    lines.append(
        f"Give a path, a known name ({', '.join(names)}), or hf://org/repo[/path][@revision]."
    )
    return "\n".join(lines)


def _on_hub(place: HubPlace) -> Path:
    """A file if the Hub has one of that name, else a folder."""
    if not place.path:
        return _folder(place)
    try:
        return _file(place)
    except FolderError:
        return _folder(place)


def _file(place: HubPlace) -> Path:
    from huggingface_hub import hf_hub_download

    with explained(place):
        download(place)
        path = Path(hf_hub_download(place.repo, place.path, revision=place.revision))
    if path.is_dir():  # without network the client gives what is in the cache
        raise FolderError(f"{place}: {name_a_file([p.name for p in path.iterdir()])}")
    return path


def _folder(place: HubPlace) -> Path:
    folder = _snapshot(place, _LOADED)
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(place, (*_LOADED, *_PICKLED))
    told = files_in(place)
    meant = _meant([name for name in told or _names_in(folder) if "/" not in name])
    only = meant[0] if len(meant) == 1 else None
    if only and not (folder / only).is_file():
        folder = _file(replace(place, path=f"{place.path}/{only}".lstrip("/"))).parent
    if not folder.is_dir():
        raise HubError(f"{place}: {_why_nothing_came(place, told)}")
    if not meant and weights_among(told):
        raise HubError(f"{place}: {name_a_file(told)}")
    # What else was downloaded before lies there, too, and must make no difference.
    if only is None or only.startswith(_DIFFUSERS) or weights_among(_names_in(folder)) == [only]:
        return folder
    return folder / only


def _names_in(path: Path) -> list[str]:
    """Of the files in a folder, or of those beside a file; none if it is not there."""
    folder = path.parent if path.is_file() else path
    return os.listdir(folder) if folder.is_dir() else []


def _meant(names: Collection[str]) -> list[str]:
    """Files of weights that a folder of these means; none if it leaves a choice."""
    weights = weights_among(names)
    safe = [name for name in weights if name.endswith(".safetensors")]
    usual = [name for name in weights if name in _PICKLED]
    return safe or usual or (weights if len(weights) == 1 else [])


def _why_nothing_came(place: HubPlace, told: Collection[str]) -> str:
    if told:
        return name_a_file(told)
    if told_files(place) is None:
        return out_of_reach()
    return f"the repository holds no files there; see {place.page}"


def _snapshot(place: HubPlace, patterns: Collection[str]) -> Path:
    """Download the files right in `place` that fit the patterns; their folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects, tqdm

    class _TerminalOnly(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": None})

    within = glob.escape(f"{place.path}/") if place.path else ""
    allowed, ignored = [f"{within}{pattern}" for pattern in patterns], [f"{within}*/*"]
    with explained(place):
        names = file_names(place)
        for name in filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored):
            download(replace(place, path=name))
        snapshot = snapshot_download(
            place.repo,
            revision=place.revision,
            allow_patterns=allowed,
            ignore_patterns=ignored,
            tqdm_class=_TerminalOnly,
        )
    return Path(snapshot) / place.path


def check_login(place: HubPlace) -> None:
    """Before an upload to `place` is prepared.

    Raises:
        HubError: nobody is logged in.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise HubError(f"{place}: uploading needs an account; {LOG_IN} (a token that may write)")


def upload(folder: Path, place: HubPlace, *, private: bool, message: str) -> str:
    """Make the repository if necessary and put all files of `folder` into it; its page.

    Raises:
        HubError: the Hub does not take it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with explained(place):
        # None leaves it to the organisation, whose repositories may be private anyway.
        api.create_repo(place.repo, exist_ok=True, private=private or None)
        api.upload_folder(repo_id=place.repo, folder_path=folder, commit_message=message)
    return place.page
