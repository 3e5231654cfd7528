"""Surfaces made by people; every function paints one panel, float32 [h, w, 3] in 0..1, between two colours."""

from __future__ import annotations

import numpy as np

from .landscape import Tints, ramp
from .noise import fractal, lerp
from .panel import Panel


def _seams(place: np.ndarray, width: float, scale: np.ndarray | float) -> np.ndarray:
    """How much of a pixel lies within `width` of a whole number; scale: pixels per unit of place."""
    away = np.abs(place - np.round(place))
    return np.clip(0.5 + (width - away) * scale, 0, 1) * np.clip(width * scale * 4, 0, 1)


def _per_cell(rng: np.random.Generator, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """A normal number for every cell of a grid."""
    table = rng.standard_normal((61, 67)).astype(np.float32)
    return table[row.astype(int) % 61, column.astype(int) % 67]


def paint_wood(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    """Boards: across on a receding table, any of two ways on a wall."""
    u, v, scale = panel.ground
    upright = not panel.receding and rng.random() < 0.4
    boards = rng.uniform(2.5, 9)
    along, across = (v, u * boards) if upright else (u, v * boards)
    board = np.floor(across)
    offset, tone = _per_cell(rng, board, board * 0), _per_cell(rng, board, board * 0 + 1)
    stretch = (1.0, 7.0) if upright else (7.0, 1.0)
    warp = panel.field(rng, 1.3, 4, stretch)
    fibre = panel.field(rng, 0.4, 64, stretch)
    rings = np.sin(2 * np.pi * ((across - board) * rng.uniform(0.8, 2.5) + 0.9 * warp + 3 * offset + 0.6 * along))
    image = ramp(panel, tints) * (1 + 0.06 * tone + 0.05 * rings + 0.05 * fibre)[..., None]
    gap = _seams(across, 0.02 + 0.006 * boards / 4, panel.size * scale * scale / boards)
    return image * (1 - rng.uniform(0.3, 0.6) * gap[..., None])


def paint_bricks(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    u, v, scale = panel.ground
    rows = rng.uniform(6, 16)
    long = rng.uniform(1.7, 2.6)
    y = v * rows
    row = np.floor(y)
    x = u * rows / long + 0.5 * (row % 2)
    tone = _per_cell(rng, row, np.floor(x))
    rough = panel.field(rng, 0.8, 8)
    bricks = ramp(panel, tints) * (1 + 0.11 * tone + 0.05 * rough + 0.03 * panel.grain(rng))[..., None]
    inside = y - row
    bricks *= (1 + 0.10 * np.clip(1 - inside * 6, 0, 1) - 0.12 * np.clip(inside * 6 - 5, 0, 1))[..., None]
    mortar = np.array((0.78, 0.75, 0.70) if rng.random() < 0.7 else (0.40, 0.38, 0.37), np.float32)
    width = rng.uniform(0.035, 0.07)
    seams = np.maximum(_seams(y, width, panel.size * scale / rows),
                       _seams(x, width / long, panel.size * scale * long / rows))  # fmt: skip
    return lerp(bricks, mortar * (1 + 0.05 * rough[..., None]), seams)


def paint_tiles(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    """Square tiles, plain or of two tones; on a receding floor they shrink to the horizon."""
    u, v, scale = panel.ground
    count = rng.uniform(3, 9)
    turn = np.float32(np.pi / 4 * (rng.random() < 0.25))
    x, y = (u * np.cos(turn) - v * np.sin(turn)) * count, (u * np.sin(turn) + v * np.cos(turn)) * count
    row, column = np.floor(y), np.floor(x)
    chequered = rng.uniform(0.15, 0.6) * (rng.random() < 0.4)
    tone = 1 - chequered * ((row + column) % 2) + 0.03 * _per_cell(rng, row, column)
    if chequered:  # an edge between two tones is as smooth as the seam over it
        tone = tone.astype(np.float32)
    image = ramp(panel, tints) * (tone + 0.02 * panel.field(rng, 1.3))[..., None]
    seam = np.array((0.85, 0.84, 0.82) if rng.random() < 0.5 else (0.42, 0.42, 0.42), np.float32)
    width, pixels = rng.uniform(0.015, 0.035), panel.size * scale / count
    return lerp(image, seam, np.maximum(_seams(x, width, pixels), _seams(y, width, pixels)))


def paint_wall(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    """Plaster, or wallpaper with stripes or spots."""
    x, y = panel.places
    image = ramp(panel, tints)
    pattern = rng.random()
    if pattern < 0.25:
        pitch = rng.uniform(0.04, 0.16)
        wave = np.abs((x / pitch) % 1 - 0.5) - 0.25
        image = image * (1 - 0.1 * np.clip(0.5 + wave * pitch * panel.size, 0, 1))[..., None]
    elif pattern < 0.45:
        pitch, size = rng.uniform(0.06, 0.14), rng.uniform(0.12, 0.25)
        row = np.floor(y / pitch)
        inside = size - np.hypot((x / pitch + 0.5 * (row % 2)) % 1 - 0.5, y / pitch - row - 0.5)
        spot = np.clip(0.5 + inside * pitch * panel.size, 0, 1)[..., None]
        image = image + (0.5 * image + 0.5 - image) * spot
    uneven = rng.uniform(0, 0.03) * fractal(rng, panel.shape, 1.4) + rng.uniform(0, 0.02) * panel.grain(rng)
    return image * (1 + uneven)[..., None]


def paint_cloth(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    """Folds, with gingham or a weave."""
    u, v, scale = panel.ground
    image = ramp(panel, tints)
    if rng.random() < 0.6:
        pitch = rng.uniform(0.05, 0.16)
        pixels = pitch * panel.size * scale
        stripes = [np.clip(0.5 + (np.abs((w / pitch) % 1 - 0.5) - 0.25) * pixels, 0, 1) for w in (u, v)]
        image = image * (1 - rng.uniform(0.1, 0.22) * (stripes[0] + stripes[1]))[..., None]
    folds = fractal(rng, panel.shape, 1.9, 4, 64, (rng.uniform(0.6, 2), rng.uniform(0.6, 2)))
    lit = np.gradient(folds, axis=1) * (panel.size / 64)
    weave = panel.grain(rng) * rng.uniform(0.01, 0.04)
    return image * (1 + 0.03 * folds + rng.uniform(0.1, 0.5) * lit + weave)[..., None]


def paint_paper(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    u, v, scale = panel.ground
    image = ramp(panel, tints)
    ruling = rng.random()
    pitch = rng.uniform(0.04, 0.1)
    ink = np.array([0.55, 0.68, 0.85], np.float32)
    if ruling < 0.6:
        lines = _seams(v / pitch, 0.018, panel.size * pitch * scale)
        if ruling < 0.3:
            lines = np.maximum(lines, _seams(u / pitch, 0.018, panel.size * pitch * scale))
        image = lerp(image, ink, 0.7 * lines)
    return image * (1 + rng.uniform(0, 0.015) * panel.grain(rng) + 0.008 * fractal(rng, panel.shape, 1.4))[..., None]
