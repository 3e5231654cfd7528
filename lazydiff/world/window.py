"""Windows on pictures of the world: most of what a model has to learn is seen in a small part of a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from .holes import pixel_extent
from .phrases import random_item_caption
from .sample import WorldSample

WHOLE = 512  # px per side of what windows are cut out of
MARGIN = 1.15, 1.8  # sides of a hole that a window around it measures, if that is more than its own pixels


class WorldWindow(NamedTuple):
    """A part of a sample: image uint8 [size, size, 3], mask bool [size, size], and what is asked for there."""

    image: np.ndarray
    mask: np.ndarray
    caption: str


def look_through_window(rng: np.random.Generator, sample: WorldSample, size: int) -> WorldWindow:
    """A window of size × size pixels around the hole; one around a larger hole is scaled down to that."""
    whole = len(sample.mask)
    x0, y0, x1, y1 = pixel_extent(sample.mask)
    side = min(max(size, round(max(y1 - y0, x1 - x0) * rng.uniform(*MARGIN))), whole)
    top, left = (
        int(rng.integers(max(end - side, 0), min(begin, whole - side) + 1)) for begin, end in ((y0, y1), (x0, x1))
    )
    window = slice(top, top + side), slice(left, left + side)
    image, mask = Image.fromarray(sample.image[window]), Image.fromarray(sample.mask[window].astype(np.uint8) * 255)
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
        mask = mask.resize((size, size), Image.Resampling.BOX)
    caption = sample.caption
    if sample.kind == "object":
        caption = _caption_of_part(rng, sample, left / whole, top / whole, side / whole)
    return WorldWindow(np.asarray(image), np.asarray(mask) > 0, caption)


def _caption_of_part(rng: np.random.Generator, sample: WorldSample, left: float, top: float, side: float) -> str:
    """What may ask for the item where only a part of the picture, in sides of it, is seen."""
    assert sample.target is not None
    target, items = sample.scene.items[sample.target], sample.scene.items
    seen = [
        placed for placed in items
        if placed is target
        or top <= placed.y - placed.side / 2 < top + side and left <= placed.x < left + side
    ]  # fmt: skip
    return random_item_caption(rng, replace(sample.scene, items=tuple(seen)), seen.index(target))
