"""Pictures of many overlapping shapes. Dead leaves, whose sizes follow a power law, have statistics close to those of
photographs (Lee, Mumford, Huang, "Occlusion Models for Natural Images", 2001)."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from .colours import oklab_to_srgb, srgb_to_oklab
from .landscape import Tints
from .noise import fractal
from .panel import Panel

_ANGLES = np.linspace(0, 2 * math.pi, 25)[:-1]


def _outline(rng: np.random.Generator, form: str) -> np.ndarray:
    """A shape of radius about 1, [N, 2]."""
    if form == "round":
        return np.stack([np.cos(_ANGLES), rng.uniform(0.5, 1) * np.sin(_ANGLES)], 1)
    if form == "box":
        w, h = 1.0, rng.uniform(0.25, 1)
        return np.array([(-w, -h), (w, -h), (w, h), (-w, h)])
    if form == "leaf":
        sin = np.sin(_ANGLES)
        return np.stack([np.cos(_ANGLES), rng.uniform(0.25, 0.5) * sin * np.sqrt(np.abs(sin))], 1)
    if form == "shard":
        angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 7))))
        return np.stack([np.cos(angles), np.sin(angles)], 1)
    radius = 1 + sum(rng.uniform(0, 0.5 / k) * np.cos(k * _ANGLES + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    return np.stack([radius * np.cos(_ANGLES), radius * np.sin(_ANGLES)], 1)


def _palette(rng: np.random.Generator, tints: Tints | None, count: int) -> np.ndarray:
    """A colour for each of so many shapes, sRGB [count, 3]: about the tints, or about a few random colours."""
    if tints is not None:
        centres = np.stack([srgb_to_oklab(tint) for tint in tints])
        spread = np.array([0.07, 0.025, 0.025])
    else:
        number = int(rng.integers(2, 7))
        muted, dark = rng.uniform(0.02, 0.09), rng.uniform(0.15, 0.6)
        lightness = rng.uniform(dark, dark + rng.uniform(0.1, 0.4), number)
        centres = np.stack([lightness, rng.normal(0, muted, number), rng.normal(0, muted, number)], 1)
        spread = np.array([rng.uniform(0.02, 0.15), 0.03, 0.03])
    chosen = centres[rng.integers(len(centres), size=count)] + rng.standard_normal((count, 3)) * spread
    return oklab_to_srgb(chosen)


def scatter_leaves(rng: np.random.Generator, panel: Panel, tints: Tints | None, forms: tuple[str, ...]) -> np.ndarray:
    """Shapes thrown over each other until little of the ground is seen, each with its gradient and its texture."""
    h, w = panel.shape
    largest, smallest = rng.uniform(0.15, 0.45), rng.uniform(0.02, 0.07)
    if tints is not None:
        largest, smallest = rng.uniform(0.05, 0.12), rng.uniform(0.015, 0.03)
    count = int(np.clip(5.0 / (largest * smallest), 120, 1000))
    # radii r with density r**-3 between the smallest and the largest: the inverse of the distribution function
    radius = 1 / np.sqrt(smallest**-2 + rng.random(count) * (largest**-2 - smallest**-2))
    if rng.random() < 0.3:  # large ones below keep small ones from being covered
        radius = np.sort(radius)[::-1]
    colours = _palette(rng, tints, count + 1)
    labels = Image.new("I", (2 * w, 2 * h), count)
    draw = ImageDraw.Draw(labels)
    low, high = panel.top - 0.1, panel.bottom + 0.1
    centres = np.stack([rng.uniform(-0.1, 1.1, count), rng.uniform(low, high, count) - panel.top], 1)
    for i in range(count):
        outline, turn = _outline(rng, forms[int(rng.integers(len(forms)))]), rng.uniform(0, 2 * math.pi)
        cos, sin = math.cos(turn), math.sin(turn)
        placed = (outline @ np.array([[cos, sin], [-sin, cos]]) * radius[i] + centres[i]) * (2 * panel.size)
        draw.polygon(placed.ravel().tolist(), fill=i)
    index = np.asarray(labels)
    image = np.asarray(Image.fromarray((colours * 255).astype(np.uint8)[index]).reduce(2), np.float32) / 255
    rounded = rng.uniform(0, 0.3) if tints is None else rng.uniform(0.2, 0.45)
    placed = np.column_stack([centres, radius])
    return image * _relief_of_leaves(rng, panel, index[::2, ::2], placed, rounded)[..., None]


def _relief_of_leaves(
    rng: np.random.Generator, panel: Panel, index: np.ndarray, placed: np.ndarray, rounded: float
) -> np.ndarray:
    """The brightness of every pixel, [h, w], by the label of its shape: lighter towards the light, flat or textured.

    placed: x, y (from the panel's top) and radius of the shapes, [N, 3]
    """
    x, y = panel.places
    count = len(placed) + 1  # and what no shape covers
    own_x, own_y, radius = np.concatenate([placed, [(0.5, 0.5, 1.0)]]).astype(np.float32).T
    tilt = rounded * rng.uniform(0.3, 1.0, count).astype(np.float32)
    rough = ((rng.random(count) < 0.5) * rng.uniform(0, 0.15, count)).astype(np.float32)
    across, down = (x - own_x[index]) / radius[index], (y - panel.top - own_y[index]) / radius[index]
    facing = np.clip(panel.light.side * across - panel.light.height * down, -1, 1)
    texture = fractal(rng, panel.shape, rng.uniform(0.3, 1.2), 8)
    return np.clip(1 + tilt[index] * facing + rough[index] * texture, 0.3, 1.6)


def paint_foliage(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    return scatter_leaves(rng, panel, tints, ("leaf",))


def paint_pebbles(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    return scatter_leaves(rng, panel, tints, ("round", "blob"))
