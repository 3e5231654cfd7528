"""How a filled hole differs from an untouched picture: at its edge and in its grain."""

from __future__ import annotations

import numpy as np

# Pictures are uint8 [S, H, W, 3], holes bool [S, H, W]; results are in grey levels of 255.


def seam(images: np.ndarray, holes: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels of which one is in the hole and one is not."""
    pixels, jumps = images.astype(np.float32), []
    for axis in (1, 2):
        across = np.diff(holes, axis=axis)  # of booleans: where they differ
        jumps.append(np.abs(np.diff(pixels, axis=axis))[across])
    return float(np.concatenate(jumps).mean())


def roughness(images: np.ndarray, holes: np.ndarray) -> float:
    """Mean absolute Laplacian of the hole's inner pixels: those whose four neighbours are in it too."""
    pixels, middle = images.astype(np.float32), (slice(None), slice(1, -1), slice(1, -1))
    inner, laplacian = holes[middle].copy(), -4 * pixels[middle]
    for axis, shift in ((1, 1), (1, -1), (2, 1), (2, -1)):
        inner &= np.roll(holes, shift, axis)[middle]
        laplacian += np.roll(pixels, shift, axis)[middle]
    return float(np.abs(laplacian)[inner].mean())
