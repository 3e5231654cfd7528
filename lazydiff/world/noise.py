"""Random fields with chosen spectra, the same at every size of the picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

FINEST = 256  # cells across a picture


def resized(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A field float32 [h, w] at another shape, antialiased."""
    if field.shape == shape:
        return field
    return np.asarray(Image.fromarray(field).resize(shape[::-1], Image.Resampling.BICUBIC))


def fractal(
    rng: np.random.Generator, shape: tuple[int, int], slope: float = 1.0, coarsest: int = 4, finest: int = FINEST,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Noise of mean 0 and deviation 1, float32 of that shape.

    slope: amplitude falls as frequency to this power (1: pink, as in photographs); coarsest, finest: cells across the
    longer side, powers of two; stretch: of cells, across and down
    """
    longer = max(shape)

    def cells(number: int) -> tuple[int, int]:
        rows, columns = number * shape[0] / longer / stretch[1], number * shape[1] / longer / stretch[0]
        return min(max(round(rows), 2), FINEST), min(max(round(columns), 2), FINEST)

    number = coarsest
    field = rng.standard_normal(cells(number), np.float32)
    while number < finest:
        number *= 2
        grid = cells(number)
        field = resized(field, grid) + rng.standard_normal(grid, np.float32) * np.float32((number / coarsest) ** -slope)
    field = (field - field.mean()) / max(float(field.std()), 1e-6)
    return resized(field, shape)


def smoothstep(field: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def lerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """From colour(s) a to colour(s) b by a field [h, w]: [h, w, 3]."""
    return a + (b - a) * share[..., None]
