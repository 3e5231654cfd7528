"""Folders and files to write, with errors in the user's words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..core.files import whole_file
from ..core.pictures import to_pil


def save_picture(image: Tensor, path: Path, enlarge: int = 1) -> Path:
    """Write [3, H, W] in 0…1 as a PNG."""
    return save_figure(to_pil(image, enlarge), path)


def save_figure(picture: Image.Image, path: Path) -> Path:
    """Write a PNG; one that was there stays whole until the new one is."""
    with whole_file(path) as unfinished:
        picture.save(unfinished, "png")
    return path


def writable_folder(path: Path) -> Path:
    """The folder, made if need be. Errors: ValueError when nothing can be written there, before any work is done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write into the folder {path} ({error.strerror})") from error
    return path


def writable_file(path: Path, suffix: str) -> Path:
    """A file to write, in a folder made if need be. Errors: ValueError when it cannot be, before any work is done."""
    if not path.name.endswith(suffix) or path.name == suffix:
        raise ValueError(f"{path}: choose a name that ends with {suffix}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: there is something of that name that is no file")
    writable_folder(path.parent)
    return path


def keep_inputs(outputs: Sequence[Path], inputs: Sequence[Path | None]) -> None:
    """Errors: ValueError for a file to write that is one of those to read."""
    for given in inputs:
        for path in outputs:
            if given is not None and path.exists() and given.exists() and path.samefile(given):
                raise ValueError(f"the result would overwrite {given}, which it is made from: choose another --output")
