"""Holes the way people paint them, around a thing or anywhere; one state of `rng` gives the same hole at any size."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .scene import WorldScene, item_footprint, item_silhouette

AROUND: dict[str, float] = {"silhouette": 0.30, "box": 0.20, "blob": 0.20, "ellipse": 0.12, "brush": 0.18}
LEAST_AREA, LARGEST_AREA = 0.01, 0.35  # of free holes, in areas of the picture


def grown(mask: np.ndarray, distance: float) -> np.ndarray:
    """The mask and what lies within about so many pixels of it."""
    soft = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(distance / 1.9))
    return mask | (np.asarray(soft) > 7)  # 1.9 deviations from a straight edge


def pixel_extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the mask in pixels, the last two just outside of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _extent(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of the mask in sides of the picture."""
    x0, y0, x1, y1 = pixel_extent(mask)
    return x0 / len(mask), y0 / len(mask), x1 / len(mask), y1 / len(mask)


def _pixel_places(size: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    return at[None], at[:, None]


def _rectangle(size: int, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    x, y = _pixel_places(size)
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def _rounded(rng: np.random.Generator, covered: np.ndarray, wobble: float) -> np.ndarray:
    """A smooth outline about the covered pixels, as small as they allow; wobble: 0 is an ellipse."""
    x, y = _pixel_places(len(covered))
    x0, y0, x1, y1 = _extent(covered)
    u, v = (x - (x0 + x1) / 2) / (x1 - x0), (y - (y0 + y1) / 2) / (y1 - y0)
    turn = np.linspace(0, 2 * np.pi, 1024, endpoint=False, dtype=np.float32)
    outline = np.ones_like(turn)
    for k in (2, 3, 4, 5):
        outline += np.float32(rng.uniform(0, wobble / k)) * np.cos(k * turn + np.float32(rng.uniform(0, 2 * np.pi)))
    reach = np.hypot(u, v) / outline[(np.arctan2(v, u) * (1024 / (2 * np.pi))).astype(np.int32) % 1024]
    return reach <= reach[covered].max() * np.float32(rng.uniform(1.02, 1.15))


def _strokes(size: int, points: np.ndarray, width: float) -> np.ndarray:
    """A round brush moved along points, all in sides of the picture."""
    image = Image.new("L", (size, size))
    draw, radius = ImageDraw.Draw(image), width * size / 2
    place = points * size
    draw.line(place.ravel().tolist(), fill=255, width=max(round(2 * radius), 1), joint="curve")
    for x, y in place:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image) > 127


def _brushed(rng: np.random.Generator, covered: np.ndarray, margin: float) -> np.ndarray:
    """Strokes to and fro over the covered pixels, all of which are hidden in the end."""
    x0, y0, x1, y1 = _extent(covered)
    lines = int(rng.integers(3, 7))
    width = max((y1 - y0) / lines * rng.uniform(1.0, 1.5), 0.015)
    sides = np.where(np.arange(2 * lines) % 4 < 2, np.arange(2 * lines) % 2, 1 - np.arange(2 * lines) % 2)
    wander = rng.normal(0, 0.05, (2, 2 * lines))
    x = x0 + (x1 - x0) * (sides + wander[0])
    y = y0 + (y1 - y0) * ((np.arange(2 * lines) // 2 + 0.5) / lines + 0.4 * wander[1])
    return grown(covered, margin * len(covered)) | _strokes(len(covered), np.stack([x, y], 1), width)


def hole_around(
    rng: np.random.Generator, scene: WorldScene, target: int, size: int, spare: float = 0.9
) -> np.ndarray:
    """A hole around an item and its shadow, bool [size, size], True = hole.

    spare: the chance to go round what is seen of the other items; otherwise parts of them may be hidden
    """
    placed, light = scene.items[target], scene.light
    covered = item_footprint(placed, light, size)
    form = str(rng.choice(list(AROUND), p=list(AROUND.values())))
    margin = float(rng.uniform(0.03, 0.22)) * placed.side
    if form == "silhouette":
        mask = grown(covered, max(margin * size, 1.5))
    elif form == "box":
        x0, y0, x1, y1 = _extent(covered)
        left, top, right, bottom = rng.uniform(0.02, 0.25, 4) * placed.side
        mask = _rectangle(size, x0 - left, y0 - top, x1 + right, y1 + bottom)
    elif form == "brush":
        mask = _brushed(rng, covered, margin / 2)
    else:
        mask = _rounded(rng, covered, 0.25 if form == "blob" else 0.0)
    if rng.random() < spare:
        mask &= ~_bodies_beside(scene, target, size)
    return mask


def _bodies_beside(scene: WorldScene, target: int, size: int) -> np.ndarray:
    """Where other items are seen beside, behind or in front of one."""
    bodies = np.zeros((size, size), bool)
    for i, other in enumerate(scene.items):
        if i == target:
            bodies &= ~item_silhouette(other, scene.light, size, 0.012)
        else:
            bodies |= item_silhouette(other, scene.light, size)
    return bodies


def _free_box(rng: np.random.Generator, area: float, part: tuple[float, float]) -> tuple[float, float, float, float]:
    """A box of that area, at most three times longer than wide, in rows of the picture."""
    low, high = part
    area = min(area, 0.8 * (high - low))
    ratio = np.exp(rng.uniform(-1.1, 1.1))
    high_side = min(np.sqrt(area / ratio), high - low)
    wide_side = min(area / high_side, 1.0)
    x, y = rng.uniform(0, 1 - wide_side), low + rng.uniform(0, 1) * (high - low - high_side)
    return x, y, x + wide_side, y + high_side


def free_hole(
    rng: np.random.Generator, scene: WorldScene, size: int, part: tuple[float, float] = (0.0, 1.0)
) -> np.ndarray:
    """A hole anywhere that hides no item's body, bool [size, size], maybe empty; part: rows of the picture, 0..1."""
    area = float(np.exp(rng.uniform(np.log(LEAST_AREA), np.log(LARGEST_AREA))))
    form = str(rng.choice(("box", "blob", "ellipse", "brush", "scribble")))
    box = _free_box(rng, area, part)
    inside = _rectangle(size, *box)
    if form in ("blob", "ellipse") and inside.any():
        x, y = _pixel_places(size)
        x0, y0, x1, y1 = box
        core = np.hypot((x - (x0 + x1) / 2) / (x1 - x0), (y - (y0 + y1) / 2) / (y1 - y0)) < 0.45
        mask = _rounded(rng, core if core.any() else inside, 0.45 if form == "blob" else 0.0)
    elif form == "brush" and inside.any():
        mask = _brushed(rng, inside, 0.0)
    elif form == "scribble":
        mask = _scribble(rng, size, box)
    else:
        mask = inside
    if scene.items:
        bodies = np.any([item_silhouette(placed, scene.light, size) for placed in scene.items], 0)
        mask = mask & ~grown(bodies, 0.01 * size)
    rows = (np.arange(size)[:, None] >= round(part[0] * size)) & (np.arange(size)[:, None] < round(part[1] * size))
    return mask & rows


def _scribble(rng: np.random.Generator, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """A line that wanders through a box, thick or thin."""
    x0, y0, x1, y1 = box
    corners = rng.random((int(rng.integers(2, 7)), 2))
    t = np.linspace(0, len(corners) - 1, 60)
    path = np.stack([np.interp(t, np.arange(len(corners)), corners[:, i]) for i in range(2)], 1)
    for _ in range(6):  # rounds the corners
        path[1:-1] = (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
    width = float(rng.uniform(0.15, 0.5)) * min(x1 - x0, y1 - y0)
    return _strokes(size, path * (x1 - x0, y1 - y0) + (x0, y0), max(width, 0.02))
