"""How a canvas of any size goes through a model of one size, and comes back: whole, or the square around its hole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.masks import pad_to_multiple

ROUGH = 32  # times a side, beyond which a picture is first averaged down to that
ROOM = 3  # times the hole's longer side: so much of a large canvas is looked at, as in the training of the small model


class Region(NamedTuple):
    """A rectangle of a canvas, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Tensor) -> Tensor:
        """Its pixels, to read or to write."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Fit:
    """How a canvas of any size goes through a model of one size.

    A region of the canvas, all of it or a square around a hole that would be small in it, is scaled until its longer
    side fits, and filled up to a square by repeating its right or lower edge, which counts as visible. What the model
    makes is scaled back and blended into the canvas at full size, so that everything outside the mask stays as it was
    and only the hole has the model's resolution.
    """

    canvas: tuple[int, int]  # height and width
    region: Region
    side: int  # of the model's canvas

    @classmethod
    def whole(cls, image: Tensor, side: int) -> Fit:
        """All of a canvas [..., H, W]."""
        height, width = image.shape[-2:]
        return cls((height, width), Region(0, 0, height, width), side)

    @classmethod
    def of(cls, mask: Tensor, side: int) -> Fit:
        """All of a canvas, or the surroundings of its holes: a square of `ROOM` times their longer side, where this is
        less. mask: [B, 1, H, W], above 0 = hole; of a batch, the holes of all"""
        fit = cls.whole(mask, side)
        inside = [(mask > 0).any(0)[0].any(axis).nonzero().flatten().tolist() for axis in (1, 0)]
        if not inside[0]:
            return fit
        size = max(ROOM * (max(places[-1] - places[0] for places in inside) + 1), side)
        if size >= max(fit.canvas):
            return fit
        lengths = [min(size, length) for length in fit.canvas]
        starts = [
            min(max((places[0] + places[-1] + 1 - part) // 2, 0), length - part)
            for places, part, length in zip(inside, lengths, fit.canvas, strict=True)
        ]
        return cls(fit.canvas, Region(*starts, *lengths), side)

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the scaled region."""
        scale = self.side / max(self.region.height, self.region.width)
        return max(round(self.region.height * scale), 1), max(round(self.region.width * scale), 1)

    @property
    def trivial(self) -> bool:
        """Whether the canvas goes through as it is."""
        return self.canvas == (self.side, self.side) == self.region[2:]

    def to_model(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image [B, C, H, W] in 0…1 and mask [B, 1, H, W] as the model takes them; any hole pixel makes a hole."""
        image, mask = self.region.of(image), self.region.of(mask)
        if self.inner != self.region[2:]:
            image = scale_picture(image, self.inner).clamp(0, 1)
            mask = F.adaptive_max_pool2d(mask, self.inner)
        return pad_to_multiple(image, mask, self.side)

    def from_model(self, image: Tensor, canvas: Tensor | None = None) -> Tensor:
        """What the model made, [B, C, side, side] in 0…1, in its place and at its own size among the canvas's pixels.

        canvas: [1 or B, C, H, W]; it may be left out where the region is all of it
        """
        image = image[..., : self.inner[0], : self.inner[1]]
        if self.inner != self.region[2:]:
            image = scale_picture(image, self.region[2:]).clamp(0, 1)
        if canvas is None or self.region[2:] == self.canvas:
            return image
        whole = canvas.to(image).expand(len(image), -1, -1, -1).clone()
        self.region.of(whole).copy_(image)
        return whole


class Fitted(NamedTuple):
    """A canvas that was fitted, and its holes at its own size."""

    fit: Fit
    mask: Tensor  # [B, 1, H, W] bool


def scale_picture(image: Tensor, size: tuple[int, int]) -> Tensor:
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
        image = scale_picture(image, (side, side)).clamp(image.min(), image.max())
        return image, F.adaptive_max_pool2d(mask, (side, side))

    def back(self, image: Tensor, canvas: Tensor) -> Tensor:
        """Copies of the canvas [1, 3, H, W], in which the square shows `image` [B, 3, side, side]."""
        if image.shape[-1] != self.size:
            scaled = scale_picture(image, (self.size, self.size))
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
