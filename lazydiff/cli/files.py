"""Pictures and folders, with errors in the user's words."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..core.files import whole_file
from ..core.pictures import from_array, to_pil


def read_image(path: Path) -> Tensor:
    """A picture file -> [1, 3, H, W] in 0…1.

    Errors: ValueError for what is no picture, empty, not RGB, or transparent somewhere.
    """
    picture = open_picture(path)
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert("RGB")
    if picture.mode != "RGB":
        raise ValueError(f"{path} is not an opaque RGB picture (its mode is {picture.mode}): save it as RGB")
    return from_array(np.asarray(picture))


def read_mask(path: Path) -> Tensor:
    """A picture file -> mask [1, 1, H, W] in 0…1, white = hole."""
    values = np.asarray(open_picture(path).convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(values)[None, None]


def box_mask(image: Tensor, x: int, y: int, width: int, height: int) -> Tensor:
    """A rectangle as a mask of the image's size. Errors: ValueError when it does not lie on the canvas."""
    rows, columns = image.shape[-2:]
    if min(width, height) < 1 or x < 0 or y < 0 or x + width > columns or y + height > rows:
        raise ValueError(f"the box {x} {y} {width} {height} does not lie on the canvas of {columns}×{rows} pixels")
    mask = torch.zeros(1, 1, rows, columns)
    mask[..., y : y + height, x : x + width] = 1
    return mask


def open_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a picture that can be read ({error})") from error


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
