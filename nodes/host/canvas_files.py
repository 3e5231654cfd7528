"""Pictures of the canvas editor as files: named after what is in them, so that none is ever overwritten by another.

What was opened or kept lies in the input folder for good; variations that nobody has kept lie in the temporary one,
which the host empties at its start.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import folder_paths
import numpy as np
from PIL import Image, UnidentifiedImageError

from ...lazydiff.core.checks import shortened
from ...lazydiff.core.files import whole_file
from ...lazydiff.core.picture_files import in_srgb, open_picture

SUBFOLDER = "lazydiffusion"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
LONGEST, MOST_PIXELS = 16384, 2**26
ID = re.compile(r"[0-9a-f]{32}")
WRITING = threading.Lock()


class CanvasPicture(NamedTuple):
    """A picture that lies here as a file."""

    id: str
    width: int
    height: int


def store_picture(pixels: np.ndarray, kept: bool) -> CanvasPicture:
    """Write pixels, uint8 [H, W, 3], without loss; the same pixels always have the same id."""
    height, width = pixels.shape[:2]
    size = np.array([width, height], "<u4").tobytes()
    id = hashlib.sha256(size + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:32]
    picture = CanvasPicture(id, width, height)
    path = folder(kept) / f"{picture.id}.png"
    with WRITING:
        if not path.exists():
            with whole_file(path) as unfinished:
                Image.fromarray(pixels).save(unfinished, "PNG", compress_level=3)
    return picture


def load_picture(id: str) -> np.ndarray:
    """uint8 [H, W, 3]. Errors: ValueError for what is no id, and for a picture that is not here."""
    check_id(id)
    for kept in (True, False):
        path = folder(kept) / f"{id}.png"
        if path.exists():
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))
    raise ValueError(
        f"the canvas's picture ({id[:8]}…) is not on this server: open the PNG or the workflow that was exported from "
        "the canvas, which has it inside, or drop the picture again"
    )


def keep_picture(id: str) -> None:
    """Let a variation stay. Errors: ValueError when it is no longer there."""
    check_id(id)
    path = folder(True) / f"{id}.png"
    with WRITING:
        if path.exists():
            return
        try:
            with whole_file(path) as unfinished:
                shutil.copyfile(folder(False) / f"{id}.png", unfinished)
        except FileNotFoundError:
            raise ValueError("this variation is no longer there, the server was started anew: generate again") from None


def read_upload(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of a picture file: upright, in sRGB. Errors: ValueError in the user's words."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            check_canvas_size(*picture.size)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"this is no picture that a canvas can open: choose one of {', '.join(FORMATS)}") from None
    upright = open_picture(io.BytesIO(data), "the picture", logging.info)
    return np.array(in_srgb(upright, "the picture", logging.info))


def check_canvas_size(width: int, height: int) -> None:
    """Errors: ValueError for a picture that is too large for a canvas, or has no pixels."""
    if not (1 <= width <= LONGEST and 1 <= height <= LONGEST and width * height <= MOST_PIXELS):
        raise ValueError(
            f"a canvas of {width}×{height} px cannot be opened: choose sides of 1 to {LONGEST} px, and "
            f"{MOST_PIXELS // 2**20} megapixels at most"
        )


def check_id(id: object) -> None:
    """Errors: ValueError for anything but a name that was made here: it becomes part of a path."""
    if not isinstance(id, str) or not ID.fullmatch(id):
        raise ValueError(f"{shortened(id)} is no picture of a canvas")


def folder(kept: bool) -> Path:
    path = Path(folder_paths.get_input_directory() if kept else folder_paths.get_temp_directory()) / SUBFOLDER
    path.mkdir(parents=True, exist_ok=True)
    return path
