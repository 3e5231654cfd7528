"""Pictures read as people see them: upright, in sRGB, opaque; and masks from what people paint."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.files import check_file
from ..core.picture_files import grey, in_srgb, open_picture, see_through, transparent
from ..core.pictures import from_array


def read_image(path: Path) -> Tensor:
    """A picture file -> [1, 3, H, W] in 0…1: the first frame, turned as its camera says, its colours in sRGB.

    Errors: ValueError for what is no picture, empty, or transparent somewhere.
    """
    picture = open_named(path)
    if see_through(picture):
        raise ValueError(
            f"{path} is not an opaque RGB picture but transparent in places: flatten it onto a background and save "
            "it as RGB; is its transparent part what to generate, give it to --mask and the flat one to --image"
        )
    return from_array(np.asarray(in_srgb(picture, path, note)))


def read_mask(path: Path) -> Tensor:
    """A picture file -> mask [1, 1, H, W] in 0…1, white = hole.

    Of a picture that is transparent in places only, the transparent part is the hole, as image editors save it.
    """
    picture = open_named(path)
    if transparent(picture):
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        lowest, highest = alpha.getextrema()
        if lowest != highest:
            note(f"{path}: what is transparent in it is taken for the hole")
            return 1 - as_mask(alpha)
        picture = picture.convert("RGB")
    return as_mask(picture)


def as_mask(picture: Image.Image) -> Tensor:
    """[1, 1, H, W] in 0…1"""
    return torch.from_numpy(grey(picture))[None, None]


def open_named(path: Path) -> Image.Image:
    check_file(path)
    return open_picture(path, path, note)


def box_mask(image: Tensor, x: int, y: int, width: int, height: int) -> Tensor:
    """A rectangle as a mask of the image's size. Errors: ValueError when it does not lie on the canvas."""
    rows, columns = image.shape[-2:]
    if min(width, height) < 1 or x < 0 or y < 0 or x + width > columns or y + height > rows:
        raise ValueError(f"the box {x} {y} {width} {height} does not lie on the canvas of {columns}×{rows} pixels")
    mask = torch.zeros(1, 1, rows, columns)
    mask[..., y : y + height, x : x + width] = 1
    return mask


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
