"""Metrics as slow, obvious loops."""

from __future__ import annotations

import numpy as np
import scipy.linalg


def frechet(real: np.ndarray, made: np.ndarray) -> float:
    """FID of features [N, F] (Heusel et al. 2017): |µ₁ - µ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½)."""
    first, second = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    return float(((real.mean(0) - made.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


def edge_jump(pixels: np.ndarray, hole: np.ndarray) -> float:
    """Mean difference of neighbours in uint8 [H, W, 3] of which one is in the hole, bool [H, W]."""
    found, (height, width) = [], hole.shape
    for y in range(height):
        for x in range(width):
            for below, right in ((y + 1, x), (y, x + 1)):
                if below < height and right < width and hole[y, x] != hole[below, right]:
                    found.append(np.abs(pixels[y, x].astype(float) - pixels[below, right]).mean())
    return float(np.mean(found))
