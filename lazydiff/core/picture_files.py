"""Picture files opened as people see them: upright, in sRGB, whatever their depth; and their masks."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

DEEP = {"I": 65535, "I;16": 65535, "I;16B": 65535, "I;16L": 65535}  # modes of 16-bit grey, and their white
Note = Callable[[str], None]  # is told what was left out of a picture


def open_picture(file: Path | io.BytesIO, name: object, note: Note) -> Image.Image:
    """The first frame, turned upright.

    name: what messages call it
    Errors: ValueError for what is no picture, or too large a one.
    """
    try:
        with Image.open(file) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                note(f"{name}: the first of its {picture.n_frames} frames is taken")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large a picture: scale it down ({error})") from error
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture that can be read") from None
    except Exception as error:  # the decoders of damaged files raise whatever they come upon
        raise ValueError(f"{name} is not a picture that can be read ({error})") from error


def transparent(picture: Image.Image) -> bool:
    """Whether it says anything about transparency."""
    return picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info


def see_through(picture: Image.Image) -> bool:
    """Whether any pixel of it is transparent."""
    return transparent(picture) and picture.convert("RGBA").getchannel("A").getextrema()[0] != 255


def grey(picture: Image.Image) -> np.ndarray:
    """float32 [H, W] in 0…1"""
    if picture.mode in DEEP:
        values = np.asarray(picture).astype(np.float32) / DEEP[picture.mode]
    else:
        values = np.asarray(picture.convert("L"), dtype=np.float32) / 255
    return values.clip(0, 1)


def in_srgb(picture: Image.Image, name: object, note: Note) -> Image.Image:
    """8-bit RGB, with the colours that the picture's profile says. Errors: ValueError for a mode of no known range."""
    if transparent(picture):
        picture = picture.convert("RGBA")
    profile = picture.info.get("icc_profile")
    if picture.mode in DEEP:
        return Image.fromarray((grey(picture) * 255).round().astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError(f"{name} has values of no known range (its mode is F): save it as RGB")
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
        note(f"{name}: its colour profile cannot be used and is left out ({error})")
        return picture.convert("RGB")
