"""What the page of the canvas editor asks of its node, read and checked."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...lazydiff.core.checks import Range
from .canvas_files import check_canvas_size, check_id

TAB = re.compile(r"[0-9a-f]{16,64}")
SEED, VARIATIONS, PLACE = Range(0, 2**64 - 1, whole=True), Range(1, 16, whole=True), Range(0, 16384, whole=True)
EMPTY = "the canvas is empty: drop or paste a picture on it, or start a blank one"


class PaintedPart(NamedTuple):
    """A part of a layer that was painted: pixels, and where they lie on the canvas."""

    x: int
    y: int
    pixels: np.ndarray  # uint8 [h, w, 4], red, green, blue, opacity

    def on(self, width: int, height: int) -> np.ndarray:
        """The whole layer, uint8 [H, W, 4], see-through where nothing was painted."""
        layer = np.zeros((height, width, 4), np.uint8)
        rows, columns = self.pixels.shape[:2]
        part = layer[self.y : self.y + rows, self.x : self.x + columns]
        part[:] = self.pixels[: part.shape[0], : part.shape[1]]
        return layer


class CanvasRequest(NamedTuple):
    """One run of the editor's node: with a name, that to be generated; without, what was kept goes on."""

    canvas: str = ""
    prompt: str = ""
    mask: PaintedPart | None = None
    sketch: PaintedPart | None = None
    name: str = ""
    tab: str = ""
    seed: int = 0
    variations: int = 1

    @classmethod
    def read(cls, text: str) -> CanvasRequest:
        """Errors: ValueError that says which of the values is wrong."""
        try:
            given = json.loads(text or "{}")
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise ValueError("canvas: the editor's own text is damaged: delete the node and add it again")
        read = cls(
            str(given.get("canvas") or ""), str(given.get("prompt") or ""),
            read_patch("mask", given.get("mask")), read_patch("sketch", given.get("sketch")),
            str(given.get("name") or ""), str(given.get("tab") or ""),
            number("seed", given.get("seed", 0), SEED), number("variations", given.get("variations", 1), VARIATIONS),
        )  # fmt: skip
        if read.canvas:
            check_id(read.canvas)
        if read.name:
            read.check()
        return read

    def check(self) -> None:
        """Errors: ValueError for a request to generate something that cannot be."""
        check_tab(self.tab)
        if not self.canvas:
            raise ValueError(EMPTY)
        if self.mask is None:
            raise ValueError("nothing is painted: paint over what is to be generated, then press Enter")


def read_patch(name: str, given: Any) -> PaintedPart | None:
    """Errors: ValueError for what is no PNG, or lies nowhere."""
    if given is None:
        return None
    try:
        x, y = (number(f"{name}.{side}", given[side], PLACE) for side in "xy")
        data = base64.b64decode(given["png"], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            check_canvas_size(*picture.size)
            return PaintedPart(x, y, np.asarray(picture.convert("RGBA")))
    except (KeyError, TypeError, binascii.Error, OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"{name}: what was painted is damaged: undo the last stroke") from None


def number(name: str, given: Any, allowed: Range) -> int:
    if not allowed.has(given):
        raise ValueError(f"{name}: choose {allowed}")
    return int(given)


def check_tab(tab: object) -> None:
    """Errors: ValueError for anything but the name that a page gives itself."""
    if not isinstance(tab, str) or not TAB.fullmatch(tab):
        raise ValueError("the page has not said which one it is: reload it")
