"""How a canvas of any size goes through a model, and comes back: whole, or what lies around its hole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.masks import bounds

ROUGH = 32  # times a side, beyond which a picture is first averaged down to that
ROOM = 3  # times the hole's longer side: so much of a large canvas is looked at, as is usual in the training
ENLARGED = 4  # times, at most: around a tiny hole more is looked at instead
MARGIN = 16  # px at least between a hole and the end of what is looked at, unless the canvas ends there

Size = tuple[int, int]  # height and width
Beyond = Literal["constant", "replicate"]


class Zoom(NamedTuple):
    """How much of a canvas is looked at around its holes, and at which size."""

    surroundings: float = ROOM  # times the longer side of the holes' box
    megapixels: float = 1.0  # of 1024² px


class Region(NamedTuple):
    """A rectangle of a canvas, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, box: Sequence[tuple[int, int]], size: Sequence[int], canvas: Size) -> Region:
        """A rectangle of that height and width, as far as the canvas has them, with a box in its middle, as far as it
        can be there. box: rows and columns, from and to"""
        lengths = [min(length, side) for length, side in zip(size, canvas, strict=True)]
        starts = [
            min(max((first + end - length) // 2, 0), side - length)
            for (first, end), length, side in zip(box, lengths, canvas, strict=True)
        ]
        return cls(*starts, *lengths)

    def of(self, image: Tensor) -> Tensor:
        """Its pixels, to read or to write."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Fit:
    """How a canvas of any size goes through a model.

    A region of the canvas, all of it or what lies around its holes, is scaled to `inner`, and filled up to `outer` by
    repeating its right and lower edge. What the model makes is scaled back and blended into the canvas at full size, so
    that everything outside the mask stays as it was and only the hole has the model's resolution.
    """

    canvas: Size
    region: Region
    inner: Size  # of the scaled region
    outer: Size  # of the model's canvas

    @classmethod
    def whole(cls, image: Tensor, side: int) -> Fit:
        """All of a canvas [..., H, W], for a model of one size."""
        return cls._square(extent(image), Region(0, 0, *extent(image)), side)

    @classmethod
    def of(cls, mask: Tensor, side: int) -> Fit:
        """All of a canvas, or the surroundings of its holes: a square of `ROOM` times their longer side, where this is
        less; for a model of one size. mask: [B, 1, H, W], above 0 = hole; of a batch, the holes of all"""
        box, canvas = bounds(mask), extent(mask)
        size = 0 if box is None else max(ROOM * max(end - first for first, end in box), side)
        if box is None or size >= max(canvas):
            return cls.whole(mask, side)
        return cls._square(canvas, Region.around(box, (size, size), canvas), side)

    @classmethod
    def _square(cls, canvas: Size, region: Region, side: int) -> Fit:
        scale = side / max(region.height, region.width)
        inner = max(round(region.height * scale), 1), max(round(region.width * scale), 1)
        return cls(canvas, region, inner, (side, side))

    @classmethod
    def padded(cls, image: Tensor, token: int) -> Fit:
        """All of a canvas [..., H, W] at its own size, filled up to whole tokens of so many pixels."""
        height, width = extent(image)
        outer = -(-height // token) * token, -(-width // token) * token
        return cls((height, width), Region(0, 0, height, width), (height, width), outer)

    @classmethod
    def zoomed(cls, mask: Tensor, token: int, zoom: Zoom, edge: int = 0) -> Fit:
        """The surroundings of a canvas's holes, as wide on all sides, scaled to the zoom's size in whole tokens.

        mask: [B, 1, H, W], above 0 = hole; of a batch, the holes of all. edge: px by which they will grow
        """
        canvas, side = extent(mask), 1024 * zoom.megapixels**0.5
        region = Region(0, 0, *canvas)
        if hole := bounds(mask):
            box = [(max(first - edge, 0), min(end + edge, length))
                   for (first, end), length in zip(hole, canvas, strict=True)]  # fmt: skip
            lengths = [end - first for first, end in box]
            margin = max((zoom.surroundings - 1) / 2 * max(lengths), MARGIN)
            size = [max(round(length + 2 * margin), round(side / ENLARGED)) for length in lengths]
            region = Region.around(box, size, canvas)
        scale = side / (region.height * region.width) ** 0.5
        height, width = (max(round(length * scale / token), 1) * token for length in region[2:])
        return cls(canvas, region, (height, width), (height, width))

    @property
    def scaled(self) -> bool:
        """Whether the model sees other pixels than all of the canvas's own."""
        return not self.canvas == self.region[2:] == self.inner

    @property
    def trivial(self) -> bool:
        """Whether the canvas goes through as it is."""
        return not self.scaled and self.inner == self.outer

    def to_model(self, image: Tensor, mask: Tensor, beyond: Beyond = "constant") -> tuple[Tensor, Tensor]:
        """Image [B, C, h, w] in 0…1 and mask [B, 1, h, w], of the canvas or of the region, as the model takes them.

        Any hole pixel makes a hole. beyond: how the mask is filled up; what is added by zeros is visible
        """
        image, mask = (each if extent(each) == self.region[2:] else self.region.of(each) for each in (image, mask))
        if self.inner != self.region[2:]:
            image = scale_picture(image, self.inner).clamp(0, 1)
            mask = F.adaptive_max_pool2d(mask, self.inner)
        return self.fill_up(image), self.fill_up(mask, beyond)

    def fill_up(self, image: Tensor, beyond: Beyond = "replicate") -> Tensor:
        """What is of the size `inner`, [B, C, h, w], filled up to `outer`: with its edge (replicate), or with zeros."""
        missing = (0, self.outer[1] - self.inner[1], 0, self.outer[0] - self.inner[0])
        return F.pad(image, missing, mode=beyond) if any(missing) else image

    def from_model(self, image: Tensor, canvas: Tensor | None = None) -> Tensor:
        """What the model made, [B, C, *outer] in 0…1, at the region's own size, in its place among a canvas's pixels.

        canvas: [1 or B, C, H, W]; without it, the region alone
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
    mask: Tensor  # [B, 1, h, w] bool, of the region

    @property
    def holes(self) -> Tensor:
        """[B, 1, H, W] bool, of the canvas."""
        holes = self.mask.new_zeros(len(self.mask), 1, *self.fit.canvas)
        self.fit.region.of(holes).copy_(self.mask)
        return holes


def extent(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


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
