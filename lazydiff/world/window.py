"""Windows on pictures of the world: most of what a model has to learn is seen in a small part of a picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from .phrases import random_item_caption
from .sample import WorldSample

WHOLE = 512  # px per side of what windows are cut out of
MARGIN = 1.15, 1.8  # sides of a hole that a window around it measures, if that is more than its own pixels


def look_through_window(rng: np.random.Generator, sample: WorldSample, size: int) -> WorldSample:
    """The sample of a window of size × size pixels around its hole; pictures of large holes are scaled down to it.

    A thing is asked for by what is seen in the window.
    """
    whole = len(sample.mask)
    rows, columns = np.flatnonzero(sample.mask.any(1)), np.flatnonzero(sample.mask.any(0))
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = min(max(size, round(extent * rng.uniform(*MARGIN))), whole)
    top, left = (_start(rng, at[0], at[-1] + 1, side, whole) for at in (rows, columns))
    window = slice(top, top + side), slice(left, left + side)
    image, mask = Image.fromarray(sample.image[window]), Image.fromarray(sample.mask[window].astype(np.uint8) * 255)
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
        mask = mask.resize((size, size), Image.Resampling.BOX)
    caption = sample.caption
    if sample.kind == "object" and sample.target is not None:
        seen = [
            i for i, placed in enumerate(sample.scene.items)
            if i == sample.target
            or top <= (placed.y - placed.side / 2) * whole < top + side and left <= placed.x * whole < left + side
        ]  # fmt: skip
        scene = replace(sample.scene, items=tuple(sample.scene.items[i] for i in seen))
        caption = random_item_caption(rng, scene, seen.index(sample.target))
    return replace(sample, image=np.asarray(image), mask=np.asarray(mask) > 0, caption=caption)


def _start(rng: np.random.Generator, first: int, end: int, side: int, whole: int) -> int:
    """A place for a window of a picture that has these pixels in it."""
    return int(rng.integers(max(end - side, 0), min(first, whole - side) + 1))
