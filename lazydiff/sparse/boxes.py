"""Rectangles of a feature map."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Size = tuple[int, int]  # height, width


class Box(NamedTuple):
    """A rectangle of a feature map; `bottom` and `right` are the first row and column beyond it."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def whole(cls, size: Size) -> Box:
        return cls(0, 0, *size)

    @property
    def size(self) -> Size:
        return self.bottom - self.top, self.right - self.left

    def grown(self, by: int, size: Size) -> Box:
        """`by` more on every side, but nothing beyond a map of that size."""
        top, left = max(self.top - by, 0), max(self.left - by, 0)
        return Box(top, left, min(self.bottom + by, size[0]), min(self.right + by, size[1]))

    def shrunk(self, by: int, size: Size) -> Box:
        """`by` less on every side but at the border of the map, where padding with zeros is what the whole map gets."""
        top, left = self.top + by * (self.top > 0), self.left + by * (self.left > 0)
        return Box(top, left, self.bottom - by * (self.bottom < size[0]), self.right - by * (self.right < size[1]))

    def scaled(self, up: int, down: int = 1) -> Box:
        """On a map of other resolution: the smallest box that holds all of it."""
        bottom, right = -(-self.bottom * up // down), -(-self.right * up // down)
        return Box(self.top * up // down, self.left * up // down, bottom, right)

    def inner(self, cell: int) -> Box:
        """The cells of that side that lie wholly inside, on the map of cells; perhaps none."""
        top, left = -(-self.top // cell), -(-self.left // cell)
        return Box(top, left, max(self.bottom // cell, top), max(self.right // cell, left))

    def of(self, x: Tensor) -> Tensor:
        """These rows and columns of a whole map [..., H, W], to read or to write."""
        return x[..., self.top : self.bottom, self.left : self.right]


def size_of(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]
