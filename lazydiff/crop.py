"""The square around a hole, scaled to a model's side: all that the paper's RegenerateCrop sees of a canvas."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Crop(NamedTuple):
    """The smallest square inside the canvas that holds the whole hole (paper, section 4.1)."""

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
        image = F.interpolate(image, (side, side), mode="bicubic", antialias=True).clamp(image.min(), image.max())
        return image, F.adaptive_max_pool2d(mask, (side, side))

    def back(self, image: Tensor, canvas: Tensor) -> Tensor:
        """Copies of the canvas [1, 3, H, W], in which the square shows `image` [B, 3, side, side]."""
        if image.shape[-1] != self.size:
            scaled = F.interpolate(image, (self.size, self.size), mode="bicubic", antialias=True)
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
