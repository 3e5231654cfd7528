"""Pictures read as people see them: upright, in sRGB, opaque; and masks from what people paint."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..core.files import check_file
from ..core.pictures import from_array

DEEP = {"I": 65535, "I;16": 65535, "I;16B": 65535, "I;16L": 65535}  # modes of 16-bit grey, and their white


def read_image(path: Path) -> Tensor:
    """A picture file -> [1, 3, H, W] in 0…1: the first frame, turned as its camera says, its colours in sRGB.

    Errors: ValueError for what is no picture, empty, or transparent somewhere.
    """
    picture = open_picture(path)
    if transparent(picture):
        lowest, _ = picture.convert("RGBA").getchannel("A").getextrema()
        if lowest != 255:
            raise ValueError(
                f"{path} is not an opaque RGB picture but transparent in places: flatten it onto a background and save "
                "it as RGB; is its transparent part what to generate, give it to --mask and the flat one to --image"
            )
        picture = picture.convert("RGBA")
    return from_array(np.asarray(in_srgb(picture, path)))


def read_mask(path: Path) -> Tensor:
    """A picture file -> mask [1, 1, H, W] in 0…1, white = hole.

    Of a picture that is transparent in places only, the transparent part is the hole, as image editors save it.
    """
    picture = open_picture(path)
    if transparent(picture):
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        lowest, highest = alpha.getextrema()
        if lowest != highest:
            note(f"{path}: what is transparent in it is taken for the hole")
            return 1 - grey(alpha)
        picture = picture.convert("RGB")
    return grey(picture)


def open_picture(path: Path) -> Image.Image:
    """The first frame, turned upright. Errors: ValueError for a file that is no picture, or too large a one."""
    check_file(path)
    try:
        with Image.open(path) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                note(f"{path}: the first of its {picture.n_frames} frames is taken")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large a picture: scale it down ({error})") from error
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read") from None
    except Exception as error:  # the decoders of damaged files raise whatever they come upon
        raise ValueError(f"{path} is not a picture that can be read ({error})") from error


def transparent(picture: Image.Image) -> bool:
    """Whether it says anything about transparency."""
    return picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info


def grey(picture: Image.Image) -> Tensor:
    """[1, 1, H, W] in 0…1"""
    if picture.mode in DEEP:
        values = np.asarray(picture).astype(np.float32) / DEEP[picture.mode]
    else:
        values = np.asarray(picture.convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(values.clip(0, 1))[None, None]


def in_srgb(picture: Image.Image, path: Path) -> Image.Image:
    """8-bit RGB, with the colours that the picture's profile says. Errors: ValueError for a mode of no known range."""
    profile = picture.info.get("icc_profile")
    if picture.mode in DEEP:
        return Image.fromarray((grey(picture)[0, 0].numpy() * 255).round().astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError(f"{path} has values of no known range (its mode is F): save it as RGB")
    if profile is None:
        return picture.convert("RGB")
    if picture.mode in ("P", "PA", "RGBA", "RGBa", "1"):
        picture = picture.convert("RGB")
    elif picture.mode in ("LA", "La"):
        picture = picture.convert("L")
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(theirs).lower():  # as it is, to the bit
            return picture.convert("RGB")
        converted = ImageCms.profileToProfile(picture, theirs, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None
        return converted
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        note(f"{path}: its colour profile cannot be used and is left out ({error})")
        return picture.convert("RGB")


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
