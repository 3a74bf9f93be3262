"""What the Hub's client says when something goes wrong -> what a user can do."""

import difflib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from driftrae_cli.errors import HubError
from driftrae_cli.hub.places import HubPlace, name_a_file

LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"
_UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT),  # HF_HOME cannot be a folder
)

# By name: which HTTP library the client uses depends on its version.
_NO_CONNECTION = (
    *("ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"),
    "OfflineModeIsEnabled",
)


class FolderError(HubError):
    """It is no file but a folder."""


@contextmanager
def explained(place: HubPlace) -> Iterator[None]:
    """Turn every error of the client into one of ours."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        yield
    except HubError as error:
        raise HubError(f"{place}: {error}") from error
    except LocalEntryNotFoundError as error:
        cause = error.__cause__
        if cause and _status(cause):  # the Hub was reached, and answered this
            raise HubError(f"{place}: {_explain(cause, place)}") from error
        raise HubError(f"{place}: {out_of_reach()}") from error
    except EntryNotFoundError as error:
        inside = files_in(place)
        if inside:
            raise FolderError(f"{place}: {name_a_file(inside)}") from error
        raise HubError(f"{place}: {_no_such_entry(place)}") from error
    except Exception as error:  # those of the HTTP library depend on the version installed
        raise HubError(f"{place}: {_explain(error, place)}") from error


def out_of_reach() -> str:
    from huggingface_hub import constants

    by_hand = (
        "Or download it elsewhere, copy it here and give its path: a path may stand wherever a "
        "reference does."
    )
    if constants.HF_HUB_OFFLINE:
        return (
            f"is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to fetch "
            f"it. Unset HF_HUB_OFFLINE. {by_hand}"
        )
    return (
        f"is not in the cache ({constants.HF_HUB_CACHE}), and the Hub ({constants.ENDPOINT}) "
        f"cannot be reached. Check the network and its proxy. {by_hand}"
    )


def _no_such_entry(place: HubPlace) -> str:
    folded = {name.lower(): name for name in file_names(place)}  # capitals are what goes wrong
    wanted = place.path.lower()
    near = [folded[n] for n in difflib.get_close_matches(wanted, folded, n=3)]
    near = near or [folded[n] for n in folded if Path(n).name == Path(wanted).name][:3]
    hint = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else f"See {place.page}/tree/{place.revision or 'main'}."
    )
    return f"the repository has no file '{place.path}'. {hint}"


def _explain(error: BaseException, place: HubPlace) -> str:
    """What went wrong and what to do; the first row of the table that fits."""
    from huggingface_hub import constants, errors

    table: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"the repository asks for consent. Give it at {place.page}, then {LOG_IN}.",
        ),
        (
            errors.RepositoryNotFoundError,
            f"the Hub has no repository {place.repo}, or it is private. Check the name; "
            f"for a private one {LOG_IN}.",
        ),
        (
            errors.RevisionNotFoundError,
            f"the repository has no revision '{place.revision}'. See {place.page}/commits.",
        ),
        (errors.HFValidationError, f"'{place.repo}' is not a possible repository name."),
    ]
    for kind, text in table:
        if isinstance(error, kind):
            return text
    status = _status(error)
    if status in (401, 403):
        return f"the Hub refuses the token ({status}); {LOG_IN}, with a token that may do this."
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return (
            f"the folder of downloads cannot take it: {constants.HF_HUB_CACHE} "
            f"({os.strerror(error.errno)}). Make room there, or set HF_HOME to another place."
        )
    told = " ".join(str(error).split())
    if type(error).__name__ in _NO_CONNECTION:
        return (
            f"the Hub ({constants.ENDPOINT}) cannot be reached ({told}). Check the network, its "
            "proxy and HF_HUB_OFFLINE, and run the same command again."
        )
    return f"the transfer failed ({told}). Run the same command again to continue it."


def _status(error: BaseException) -> int | None:
    """Of the Hub's answer that is the error; None if there was none."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def file_names(place: HubPlace) -> list[str]:
    """All files of the repository; none if the Hub does not tell, whatever the reason."""
    return told_files(place) or []


def told_files(place: HubPlace) -> list[str] | None:
    """All files of the repository; None if the Hub does not tell, whatever the reason."""
    from huggingface_hub import HfApi

    try:  # unlike a listing of the tree, this gives up at once where there is no network
        siblings = HfApi().model_info(place.repo, revision=place.revision).siblings
    except Exception:
        return None
    return [sibling.rfilename for sibling in siblings or []]


def files_in(place: HubPlace) -> list[str]:
    """Files of the repository that are in the folder `place` or below it, as seen from it."""
    within = f"{place.path}/" if place.path else ""
    return [name.removeprefix(within) for name in file_names(place) if name.startswith(within)]
