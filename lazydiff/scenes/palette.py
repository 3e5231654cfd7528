"""The colours and textures of objects."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]

# name: (body, second tone of stripes and dots). The second tone stays on the body's side of every other colour, so that
# the mean of a striped or dotted object still belongs to its own name.
COLOURS: dict[str, tuple[Colour, Colour]] = {
    "red": ((212, 16, 36), (255, 108, 124)),
    "orange": ((255, 138, 14), (204, 84, 0)),
    "yellow": ((255, 228, 48), (255, 248, 176)),
    "green": ((30, 156, 56), (140, 220, 130)),
    "blue": ((24, 96, 228), (132, 190, 255)),
    "purple": ((112, 28, 160), (180, 104, 224)),
    "pink": ((255, 132, 200), (216, 66, 150)),
    "white": ((252, 252, 255), (176, 188, 206)),
}
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")


def texture_mask(texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the second tone shows.

    x, y: pixel coordinates of any one shape; returns bool of that shape. Both patterns repeat every 8 px in x and in y,
    the grid objects are snapped to, so equal objects are equal token by token.
    """
    if texture == "plain":
        return np.zeros(np.broadcast(x, y).shape, bool)
    if texture == "striped":
        return (x + y) % 8 < 3.6
    if texture == "dotted":
        lattice = [((x - c + 4) % 8 - 4) ** 2 + ((y - c + 4) % 8 - 4) ** 2 for c in (2, 6)]
        return np.minimum(*lattice) < 1.55**2
    raise ValueError(f"unknown texture {texture!r}: choose one of {', '.join(TEXTURES)}")
