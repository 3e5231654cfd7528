"""Hole masks: drawn around an object the way a person would."""

from __future__ import annotations

from functools import cache

import numpy as np

from .backgrounds import CANVAS
from .scene import Placed, Scene, Thing, footprint, local_footprint, silhouette
from .sprites import BOX, PAD

FORMS: dict[str, float] = {"silhouette": 0.40, "box": 0.25, "blob": 0.35}
_REACH = 10  # px, the largest margin
_FAR = np.float32(99)


@cache
def _local_distance(shape: str, size: str, light: str) -> np.ndarray:
    """Distance to an object's footprint in px, exact up to _REACH: float32, _REACH wider than the footprint's frame."""
    local = np.pad(local_footprint(Thing(shape, "red", "plain", size), light), _REACH)
    h, w = local.shape
    far = np.pad(np.where(local, np.float32(0), _FAR), _REACH, constant_values=_FAR)
    reach = range(-_REACH, _REACH + 1)
    shifted = [
        far[_REACH + dy : _REACH + dy + h, _REACH + dx : _REACH + dx + w] + np.float32(np.hypot(dx, dy))
        for dy in reach for dx in reach
    ]
    return np.minimum.reduce(shifted)


def _distance(placed: Placed, light: str) -> np.ndarray:
    """Distance to an object's footprint on the canvas, float32 [96, 96]."""
    thing, edge = placed.thing, PAD + _REACH
    local = _local_distance(thing.shape, thing.size, light)
    frame = np.full((CANVAS + 2 * edge,) * 2, _FAR)
    frame[placed.y : placed.y + local.shape[0], placed.x : placed.x + local.shape[1]] = local
    return frame[edge:-edge, edge:-edge]


def _box_mask(rng: np.random.Generator, covered: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    top, bottom, left, right = rng.integers(2, 9, 4)
    mask = np.zeros_like(covered)
    mask[max(rows[0] - top, 0) : rows[-1] + 1 + bottom, max(columns[0] - left, 0) : columns[-1] + 1 + right] = True
    return mask


def _blob(rng: np.random.Generator, covered: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """A smooth star-shaped outline, as small as the footprint allows, plus a margin."""
    y, x = np.mgrid[:CANVAS, :CANVAS]
    y, x = y - centre[1], x - centre[0]
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    outline = np.ones_like(radius)
    for k in (2, 3, 4, 5):
        outline += rng.uniform(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    scale = (radius / outline)[covered].max()
    return radius <= outline * scale + rng.uniform(2, 4)


def object_mask(rng: np.random.Generator, scene: Scene, placed: Placed, spare: float = 0.93) -> np.ndarray:
    """A hole around an object that stands, or could stand, in the scene: bool [96, 96], True = hole.

    Covers the object and its shadow with a margin of 2 to 10 px. spare: the chance to go round the bodies of the other
    objects; otherwise parts of them may be hidden.
    """
    covered = footprint(placed, scene.light)
    form = str(rng.choice(list(FORMS), p=list(FORMS.values())))
    if form == "silhouette":
        mask = _distance(placed, scene.light) <= rng.uniform(2, _REACH)
    elif form == "box":
        mask = _box_mask(rng, covered)
    else:
        mask = _blob(rng, covered, (placed.x + BOX / 2, placed.y + BOX / 2))
    if rng.random() < spare:
        for other in scene.things:
            if other != placed:
                mask &= ~silhouette(other)
    return mask
