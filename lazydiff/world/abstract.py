"""Backgrounds without a name: colour fields, noise of any spectrum, stripes, dead leaves, and collages of all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .built import paint_bricks, paint_cloth, paint_tiles, paint_wood
from .colours import oklab_to_srgb
from .landscape import paint_grass, paint_sand, paint_soil, paint_water
from .leaves import paint_foliage, paint_pebbles, scatter_leaves
from .noise import fractal, lerp, smoothstep
from .panel import Panel

_FORMS = ("round", "box", "leaf", "shard", "blob")


def any_colour(rng: np.random.Generator) -> np.ndarray:
    """sRGB [3], mostly muted."""
    lightness, chroma, hue = rng.uniform(0.2, 0.97), rng.uniform(0, 0.13) * rng.random() ** 0.5, rng.uniform(0, 6.3)
    return oklab_to_srgb(np.array([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])).astype(np.float32)


def _plain(rng: np.random.Generator, panel: Panel) -> np.ndarray:
    return np.broadcast_to(any_colour(rng), (*panel.shape, 3))


def _fields(rng: np.random.Generator, panel: Panel) -> np.ndarray:
    """A gradient, or colours that melt into each other."""
    x, y = panel.places
    turn = rng.uniform(0, 6.3)
    t = 0.5 + (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)
    image = lerp(any_colour(rng), any_colour(rng), np.clip(t, 0, 1).astype(np.float32))
    for _ in range(int(rng.integers(0, 3))):
        image = lerp(image, any_colour(rng), smoothstep(fractal(rng, panel.shape, 2.2, 2, 32), -1, 2))
    return image


def _noise(rng: np.random.Generator, panel: Panel) -> np.ndarray:
    """Between two or three colours by noise of a random spectrum and direction."""
    stretch = (1.0, 1.0) if rng.random() < 0.5 else (rng.uniform(0.5, 5), rng.uniform(0.5, 5))
    first = fractal(rng, panel.shape, rng.uniform(0.4, 1.8), int(rng.choice((2, 4, 8, 16))), stretch=stretch)
    sharp = rng.uniform(0.3, 2.5)
    image = lerp(any_colour(rng), any_colour(rng), smoothstep(first, -sharp, sharp))
    if rng.random() < 0.5:
        second = fractal(rng, panel.shape, rng.uniform(0.6, 1.6), 4)
        image = lerp(image, any_colour(rng), smoothstep(second, rng.uniform(-0.5, 0.8), 2.0))
    return image


def _bands(rng: np.random.Generator, panel: Panel) -> np.ndarray:
    """Stripes of two or three colours at any angle, straight or bent, hard or soft; sometimes crossed."""
    x, y = panel.places
    pitch, colours = rng.uniform(0.03, 0.25), [any_colour(rng) for _ in range(3)]
    bend = rng.uniform(0, 1.2) * (rng.random() < 0.4) * fractal(rng, panel.shape, 2.4, 2, 32)
    share, soft = rng.uniform(0.15, 0.35), rng.uniform(0.5, 12) / panel.size if rng.random() < 0.5 else 1 / panel.size
    image = np.broadcast_to(colours[0], (*panel.shape, 3))
    turn = rng.uniform(0, 6.3)
    for i in range(1 + int(rng.random() < 0.4)):
        t = (x * np.cos(turn + 1.57 * i) + y * np.sin(turn + 1.57 * i)) / pitch + bend
        away = np.abs(t % 1 - 0.5) - share
        inside = np.clip(0.5 + away * pitch / soft, 0, 1).astype(np.float32)
        image = lerp(image, colours[i + 1], inside * rng.uniform(0.5, 1))
    return image * (1 + rng.uniform(0, 0.06) * fractal(rng, panel.shape, 1.1)[..., None])


def _leaves(rng: np.random.Generator, panel: Panel) -> np.ndarray:
    forms = tuple(str(form) for form in rng.choice(_FORMS, int(rng.integers(1, 4)), replace=False))
    return scatter_leaves(rng, panel, None, forms)


_MATTER = (paint_bricks, paint_cloth, paint_tiles, paint_wood, paint_grass, paint_sand, paint_soil, paint_water,
           paint_foliage, paint_pebbles)  # fmt: skip


def _matter(rng: np.random.Generator, panel: Panel) -> np.ndarray:
    """A material in colours that it seldom has."""
    colour = any_colour(rng)
    return _MATTER[int(rng.integers(len(_MATTER)))](rng, panel, (colour, colour * np.float32(rng.uniform(0.6, 1.0))))


def _collage(rng: np.random.Generator, panel: Panel) -> np.ndarray:
    """Two to four of the others, meeting along straight or wavering borders."""
    x, y = panel.places
    wander = [rng.uniform(0, 0.05) * fractal(rng, panel.shape, 2.0, 4, 64) for _ in range(2)]
    image = np.zeros((*panel.shape, 3), np.float32)
    nearest = np.full(panel.shape, 9.0, np.float32)
    painters = (_plain, _fields, _noise, _bands, _matter, _leaves)
    for _ in range(int(rng.integers(2, 5))):
        away = np.hypot(x + wander[0] - rng.uniform(-0.1, 1.1), y + wander[1] - rng.uniform(-0.1, 1.1))
        inside = np.clip(0.5 + (nearest - away) * panel.size / 1.5, 0, 1)
        image = lerp(image, painters[int(rng.integers(len(painters)))](rng, panel), inside)
        nearest = np.minimum(nearest, away)
    return image


PAINTERS: dict[str, Callable[[np.random.Generator, Panel], np.ndarray]] = {
    "plain": _plain, "fields": _fields, "noise": _noise, "bands": _bands, "leaves": _leaves, "matter": _matter,
    "collage": _collage,
}  # fmt: skip
