"""From the masks of entities to holes for training, as people would draw them: larger, rounder, or a box.

The paper's parameters are in an appendix that could not be found; these are ours.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

AREA = (0.002, 0.7)  # of the canvas: entities below and above make no holes
EXACT = 0.3  # of the holes are not dilated
RADIUS = (0.005, 0.05)  # of the ellipse that dilates, of the canvas's side
TIMES = 3  # at most, that a mask is dilated
HULL, BOX = 0.2, 0.1  # of the holes become the convex hull, or the bounding box
FULL = 0.05  # of the holes are the whole canvas, to be filled from the caption of the whole


class Hole(NamedTuple):
    """What to generate, and where."""

    mask: np.ndarray  # bool [H, W], True = hole
    caption: str


def generator_of(seed: int, key: str) -> np.random.Generator:
    """All randomness of one picture."""
    return np.random.default_rng([seed, *hashlib.sha256(key.encode()).digest()[:8]])


def has_right_size(mask: np.ndarray) -> bool:
    """Whether an entity [H, W] bool is neither a speck nor all there is to see."""
    return AREA[0] <= mask.mean() <= AREA[1]


def random_hole(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A hole that holds all of an entity [H, W] bool, not empty: dilated by an ellipse at random, and then perhaps its
    convex hull or its bounding box."""
    if rng.random() >= EXACT:
        radii = rng.uniform(*RADIUS, size=2) * max(mask.shape)
        # An ellipse that dilates n times is one that is n times as large.
        mask = dilate_ellipse(mask, *(radii * rng.integers(1, TIMES + 1)))
    form = rng.random()
    if form < HULL:
        return convex_hull(mask)
    return bounding_box(mask) if form < HULL + BOX else mask


def dilate_ellipse(mask: np.ndarray, down: float, across: float) -> np.ndarray:
    """Every pixel whose ellipse, of these radii in px, touches the mask [H, W] bool.

    The hits are counted by a convolution, whose work does not grow with the ellipse.
    """
    reach = int(down), int(across)
    y, x = (np.arange(-r, r + 1) for r in reach)
    ellipse = (y[:, None] / down) ** 2 + (x / across) ** 2 <= 1
    shape = [side + r for side, r in zip(mask.shape, reach, strict=True)]  # what goes around comes to nobody's pixels
    kernel = np.zeros(shape)
    kernel[np.ix_(y % shape[0], x % shape[1])] = ellipse
    hits = np.fft.irfft2(np.fft.rfft2(mask, shape) * np.fft.rfft2(kernel), shape)
    return hits[: mask.shape[0], : mask.shape[1]] > 0.5


def convex_hull(mask: np.ndarray) -> np.ndarray:
    """All pixels between those of a mask [H, W] bool, not empty."""
    rows = np.flatnonzero(mask.any(1))
    left, right = mask[rows].argmax(1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    sides = [half_hull(list(zip(x.tolist(), rows.tolist(), strict=True)), turn) for x, turn in ((left, -1), (right, 1))]
    picture = Image.fromarray(mask.astype(np.uint8))
    ImageDraw.Draw(picture).polygon([*sides[0], *reversed(sides[1])], fill=1, outline=1)
    return np.asarray(picture) > 0


def half_hull(points: list[tuple[int, int]], turn: int) -> list[tuple[int, int]]:
    """The corners of a hull's left (turn −1) or right (1) side, of points from top to bottom (Andrew 1979)."""
    hull: list[tuple[int, int]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if turn * ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) > 0:
                break
            hull.pop()
        hull.append((x, y))
    return hull


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """The smallest upright rectangle around a mask [H, W] bool, as a mask."""
    return np.logical_and.outer(mask.any(1), mask.any(0))
