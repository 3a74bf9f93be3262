"""Reading PyTorch's pickled files without running what is in them.

A pickle is a small program. PyTorch's restricted reader accepts those that build tensors,
numbers, texts and containers; every other file is refused, and nothing else ever reads one.
"""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from driftrae_cli.errors import WeightsError

ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_ASKED_FOR = re.compile(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)")
_RESTRICTION = "Weights only load failed"


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, with its tensors on the CPU.

    The tensors stay in the file where its format allows, and are read when used.

    Raises:
        WeightsError: missing or damaged, or the file needs more than plain data.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which load all the same
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # the content of the file decides what is raised
        raise WeightsError(_explain(path, str(error))) from error


def _explain(path: Path, text: str) -> str:
    asked_for = _ASKED_FOR.search(text)
    if asked_for:
        return (
            f"{path}: asks for {asked_for[1]}, which is code and not a tensor. Opening the file "
            "would run it, so it stays closed.\n"
            "If you trust its origin, open it with the program that wrote it, keep the tensors "
            "alone (torch.save(model.state_dict(), 'plain.pt')), and give that file."
        )
    if "TorchScript" in text:
        return (
            f"{path}: a TorchScript archive, which is a program and not plain tensors, so it stays "
            "closed.\n"
            "If you trust its origin, load it with torch.jit.load, keep the tensors alone "
            "(torch.save(dict(model.state_dict()), 'plain.pt')), and give that file."
        )
    if _RESTRICTION in text:
        return (
            f"{path}: a Python pickle that PyTorch did not write, or not plainly; opening it "
            "could run code, so it stays closed.\n"
            "If you trust its origin, open it with the program that wrote it, save the tensors "
            "with torch.save or safetensors, and give that file."
        )
    size = path.stat().st_size
    return (
        f"{path}: damaged or not a PyTorch file ({size} bytes); copy or download it again, "
        "or check that this is the right file"
    )
