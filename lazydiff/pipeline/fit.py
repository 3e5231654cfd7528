"""How a canvas of any size goes through a model of one size, and comes back: whole, or the square around its hole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.masks import pad_to_multiple

ROUGH = 32  # times a side, beyond which a picture is first averaged down to that


@dataclass(frozen=True)
class Fit:
    """How a canvas of any size goes through a model of one size.

    The canvas is scaled until its longer side fits, and filled up to a square by repeating its right or lower edge,
    which counts as visible. What the model makes is scaled back and blended into the canvas at full size, so that
    everything outside the mask stays as it was and only the hole has the model's resolution.
    """

    height: int
    width: int
    side: int

    @classmethod
    def of(cls, image: Tensor, side: int) -> Fit:
        return cls(image.shape[-2], image.shape[-1], side)

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the scaled canvas."""
        scale = self.side / max(self.height, self.width)
        return max(round(self.height * scale), 1), max(round(self.width * scale), 1)

    def to_model(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image and mask as the model takes them; any hole pixel makes a hole."""
        if self.inner != (self.height, self.width):
            image = resize(image, self.inner).clamp(0, 1)
            mask = F.adaptive_max_pool2d(mask, self.inner)
        return pad_to_multiple(image, mask, self.side)

    def from_model(self, image: Tensor) -> Tensor:
        """What the model made, [B, 3, side, side], at the canvas's own size."""
        image = image[..., : self.inner[0], : self.inner[1]]
        if self.inner == (self.height, self.width):
            return image
        return resize(image, (self.height, self.width)).clamp(0, 1)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] scaled to a size, bicubic. The result may leave the image's range."""
    # Much smaller: by area first, as a GPU's kernel cannot hold the weights of a thousand pixels for each one.
    rough = (min(image.shape[-2], ROUGH * size[0]), min(image.shape[-1], ROUGH * size[1]))
    if rough != image.shape[-2:]:
        image = F.interpolate(image, rough, mode="area")
    return F.interpolate(image, size, mode="bicubic", antialias=True)


class Crop(NamedTuple):
    """The smallest square inside the canvas that holds the whole hole: all that the paper's RegenerateCrop sees of it
    (section 4.1)."""

    top: int
    left: int
    size: int  # px of the canvas, before it is scaled

    @classmethod
    def around(cls, mask: Tensor) -> Crop:
        """mask: [1, 1, H, W] or [1, H, W], not empty. Errors: ValueError when no such square holds the hole."""
        height, width = mask.shape[-2:]
        rows, columns = (mask.reshape(height, width).amax(axis).nonzero().flatten().tolist() for axis in (1, 0))
        size = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        if size > min(height, width):
            raise ValueError(f"no square inside a canvas of {width}×{height} holds this mask: make the mask smaller")
        top, left = (
            min(max((inside[0] + inside[-1] + 1 - size) // 2, 0), side - size)
            for inside, side in ((rows, height), (columns, width))
        )
        return cls(top, left, size)

    def of(self, image: Tensor) -> Tensor:
        """The square's pixels, to read or to write."""
        return image[..., self.top : self.top + self.size, self.left : self.left + self.size]

    def view(self, image: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Image [B, 3, H, W] and mask [B, 1, H, W] in the square, `side` pixels wide; any hole pixel makes a hole."""
        image, mask = self.of(image), self.of(mask)
        if self.size == side:
            return image, mask
        image = resize(image, (side, side)).clamp(image.min(), image.max())
        return image, F.adaptive_max_pool2d(mask, (side, side))

    def back(self, image: Tensor, canvas: Tensor) -> Tensor:
        """Copies of the canvas [1, 3, H, W], in which the square shows `image` [B, 3, side, side]."""
        if image.shape[-1] != self.size:
            scaled = resize(image, (self.size, self.size))
            image = scaled.clamp(image.min(), image.max())
        canvas = canvas.repeat(len(image), 1, 1, 1)
        self.of(canvas).copy_(image)
        return canvas


def crop_all(image: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Each canvas of a batch cropped to its own hole, `side` pixels wide."""
    crops = [Crop.around(one).view(i[None], one[None], side) for i, one in zip(image, mask, strict=True)]
    images, masks = zip(*crops, strict=True)
    return torch.cat(images), torch.cat(masks)


def paste_all(pictures: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Each canvas of a batch with what was made of its crop, [B, 3, H, W]."""
    pasted = [
        Crop.around(one).back(picture[None], i[None]) for picture, i, one in zip(pictures, image, mask, strict=True)
    ]
    return torch.cat(pasted)
