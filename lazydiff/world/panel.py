"""The part of a picture that one material covers, and the perspective of a ground that recedes to its horizon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .easel import Light
from .noise import fractal, resized

FAR = 4.5  # how many times smaller things are at the horizon than at the lower edge
FINE = 320  # cells of grain across a picture


def shrink(down: np.ndarray | float) -> np.ndarray | float:
    """The scale of things on a receding ground, 1 at its lower edge; down: 0 at the horizon … 1."""
    return 1 / FAR + (1 - 1 / FAR) * down


@dataclass(frozen=True)
class Panel:
    """Rows of a picture of size × size pixels, from top to bottom in sides of it.

    receding: a ground seen from a low eye, its horizon at the top; otherwise a surface seen from the front
    """

    size: int
    top: float
    bottom: float
    light: Light
    receding: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return round(self.bottom * self.size) - round(self.top * self.size), self.size

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of the pixels' middles in sides of the picture, [1, w] and [h, 1], y from the picture's top."""
        h, w = self.shape
        x = (np.arange(w, dtype=np.float32)[None] + 0.5) / self.size
        y = (np.arange(h, dtype=np.float32)[:, None] + 0.5 + round(self.top * self.size)) / self.size
        return x, y

    @property
    def down(self) -> np.ndarray:
        """0 at the panel's top … 1 at its bottom, [h, 1]."""
        return np.clip((self.places[1] - self.top) / (self.bottom - self.top), 0, 1)

    @property
    def ground(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places on the surface in sides of the picture, [h, w] each (v is 0 at the lower edge of a receding ground),
        and the scale there, [h, 1]."""
        x, y = self.places
        if not self.receding:
            u, v = np.broadcast_arrays(x, y)
            return u, v, np.ones_like(y)
        scale = np.asarray(shrink(self.down), np.float32)
        return (x - 0.5) / scale, np.broadcast_to(0.55 * (1 - 1 / scale), self.shape), scale

    def field(self, rng: np.random.Generator, slope: float, coarsest: int = 4, stretch: tuple[float, float] = (1, 1)
              ) -> np.ndarray:  # fmt: skip
        """Fractal noise on the surface, [h, w]; on a receding ground it is finer and fainter towards the horizon."""
        if not self.receding:
            return fractal(rng, self.shape, slope, coarsest, stretch=stretch)
        plane = fractal(rng, (512, 512), slope, coarsest * 2, stretch=stretch)
        u, v, scale = self.ground
        column, row = (u / FAR + 0.5) * 510, np.broadcast_to(-v / (0.55 * (FAR - 1)) * 510, u.shape)
        i, j = np.clip(row.astype(np.int32), 0, 510), np.clip(column.astype(np.int32), 0, 510)
        a, b = row - i, column - j
        flat, at = plane.ravel(), i * 512 + j
        upper = flat[at] * (1 - b) + flat[at + 1] * b
        lower = flat[at + 512] * (1 - b) + flat[at + 513] * b
        return (upper * (1 - a) + lower * a) * np.minimum(1, 1.6 * scale)

    def grain(self, rng: np.random.Generator) -> np.ndarray:
        """Fine noise, [h, w], of deviation 1 where the surface is near."""
        fine = resized(rng.standard_normal((FINE, FINE), np.float32), (self.size, self.size))[: self.shape[0]]
        return fine * self.ground[2] if self.receding else fine
