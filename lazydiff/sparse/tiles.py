"""Tiles of a map, and the strip that they are laid in side by side: what a network computes instead of the whole map.

A strip is an ordinary feature map to everything that works cell by cell. Of its neighbours a convolution is given those
outside the tiles from a record, those in another tile fresh, and zeros beyond the border of the map. One tile around a
compact mask is a rectangle; where a mask is scattered many small tiles are less. Which, is found by counting cells.
Sources: FISEdit's adaptive choice (Yu et al. 2024), SIGE's tiles (Li et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import Box, Size, size_of

SIDES = (1, 2, 3, 4, 6, 8)  # of square tiles, in units


class Tiles(NamedTuple):
    """Equal tiles on the finest map; they do not overlap, and may reach beyond the border of the map."""

    corners: Tensor  # [T, 2] int64, top and left
    side: Size

    @classmethod
    def over(cls, mask: Tensor, unit: int) -> Tiles:
        """The tiles that cover a mask [H, W] bool, which is not empty, with the least work.

        unit: what corners and sides are multiples of, a power of two: that of the coarsest map that has tiles
        """
        return min(candidates(mask.cpu(), unit), key=lambda tiles: tiles.work(unit))

    def work(self, unit: int) -> int:
        """Cells of all tiles, grown by a quarter of a cell on each side for what convolutions read beside them, on all
        maps up to that of the unit, times four; cells count alike on all maps together, for coarser ones have wider
        layers."""
        (height, width), scales = self.side, [2**i for i in range(unit.bit_length())]
        return len(self.corners) * sum((2 * height + scale) * (2 * width + scale) for scale in scales)

    @property
    def cells(self) -> int:
        return len(self.corners) * self.side[0] * self.side[1]


def candidates(mask: Tensor, unit: int) -> Iterator[Tiles]:
    """The rectangle around a mask, and square tiles of several sides on grids of all offsets."""
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    box = Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1).scaled(1, unit)
    yield Tiles(torch.tensor([[box.top, box.left]]) * unit, (box.size[0] * unit, box.size[1] * unit))
    units = F.max_pool2d(F.pad(mask[None, None].float(), (0, -mask.shape[1] % unit, 0, -mask.shape[0] % unit)), unit)
    for side in SIDES:
        for top in range(side):
            for left in range(side):
                padded = F.pad(units, (left, side, top, side))
                corners = F.max_pool2d(padded, side)[0, 0].nonzero() * side - torch.tensor([top, left])
                yield Tiles(corners * unit, (side * unit, side * unit))


class TileLevel:
    """The tiles on a map of one resolution; strips are [B, C, h, T·w].

    size: of the map; tiles: at this resolution
    """

    def __init__(self, size: Size, tiles: Tiles, device: torch.device | str):
        self.size, self.side, self.count = size, tiles.side, len(tiles.corners)
        self.corners, self.device = tiles.corners.to(device), device
        (h, w), at_border = self.side, torch.ones(self.side[0] + 2, self.side[1] + 2, dtype=torch.bool, device=device)
        at_border[1:-1, 1:-1] = False
        self.border = at_border.flatten().nonzero().flatten()  # places in a tile with its halo
        self.halo, self.halo_inside = (each.flatten(1) for each in self._places(1))
        places, inside = (each.permute(1, 0, 2).flatten() for each in self._places(0))
        self.places = places  # of the map, for every cell of the strip; where that is outside, any
        self.inside = inside.nonzero().flatten()  # places of the strip that are on the map
        self.targets = places[self.inside]  # places of the map, of the strip's cells that are on it
        self.outside = None if bool(inside.all()) else ~inside
        self.shape = h, self.count * w
        owner = torch.full((size[0] * size[1],), -1, device=device)
        owner[self.targets] = self.inside
        self.others = (owner < 0).nonzero().flatten()  # of the map, without the tiles
        fresh = owner[self.halo[:, self.border]].masked_fill(~self.halo_inside[:, self.border], -1)
        near = (fresh >= 0).nonzero().unbind(1)
        self.near = near[0], self.border[near[1]]  # tiles and places in them, of cells that another tile has
        self.near_source = fresh[near]

    def _places(self, margin: int) -> tuple[Tensor, Tensor]:
        """Of every cell of every tile with a margin, [T, h, w]: its place in the map, and whether it is there."""
        (h, w), (height, width) = self.side, self.size
        rows = self.corners[:, :1] + torch.arange(-margin, h + margin, device=self.device)
        columns = self.corners[:, 1:] + torch.arange(-margin, w + margin, device=self.device)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
        return places, inside

    @cached_property
    def all_inside(self) -> bool:
        return bool(self.halo_inside.all())

    def strip(self, x: Tensor) -> Tensor:
        """Of a map [B, C, H, W]."""
        return x.flatten(2).index_select(2, self.places).unflatten(2, self.shape)

    def put(self, strip: Tensor, x: Tensor) -> Tensor:
        """A map [B, C, H, W] with the strip's cells in their places."""
        cells = strip.flatten(2)
        if self.outside is not None:
            cells = cells.index_select(2, self.inside)
        return x.flatten(2).index_copy(2, self.targets, cells.to(x.dtype)).unflatten(2, self.size)

    def on_map(self, strip: Tensor) -> Tensor:
        """[B, C, n]: the cells of a strip that are on the map."""
        return strip.flatten(2) if self.outside is None else strip.flatten(2).index_select(2, self.inside)

    def borders(self, x: Tensor) -> Tensor:
        """What is around each tile, of a map [B, C, H, W]: [B, T, C, P]."""
        return self._around(x, self.halo[:, self.border], self.halo_inside[:, self.border])

    def with_halo(self, x: Tensor) -> Tensor:
        """Each tile with one cell around it, of a map [B, C, H, W]: [B·T, C, h + 2, w + 2]."""
        tiles = self._around(x, self.halo, self.halo_inside).flatten(0, 1)
        return tiles.unflatten(2, (self.side[0] + 2, self.side[1] + 2))

    def _around(self, x: Tensor, places: Tensor, inside: Tensor) -> Tensor:
        cells = x.flatten(2).index_select(2, places.flatten()).unflatten(2, places.shape).transpose(1, 2)
        return cells.contiguous() if self.all_inside else cells * inside[:, None].to(cells)

    def padded(self, strip: Tensor, borders: Tensor) -> Tensor:
        """The same as `with_halo`, of a strip and of what was around its tiles on the whole map."""
        (h, w), tiles = self.side, self.tiles(strip)
        if self.outside is not None:
            tiles = self.tiles(strip.masked_fill(self.outside.view(self.shape), 0))
        x = strip.new_empty(len(strip), self.count, strip.shape[1], h + 2, w + 2)
        x[..., 1:-1, 1:-1] = tiles
        x.flatten(3).index_copy_(3, self.border, borders.to(x.dtype))
        if len(self.near_source):
            tile, place = self.near
            fresh = strip.flatten(2).index_select(2, self.near_source)
            x.flatten(3)[:, tile, :, place] = fresh.permute(2, 0, 1)
        return x.flatten(0, 1)

    def tiles(self, strip: Tensor) -> Tensor:
        """[B, C, h, T·w] -> [B, T, C, h, w]"""
        return strip.unflatten(3, (self.count, -1)).permute(0, 3, 1, 2, 4)

    def joined(self, tiles: Tensor) -> Tensor:
        """Tiles [B·T, C, h, w], of whatever side -> the strip [B, C, h, T·w]."""
        if self.count == 1:
            return tiles
        return tiles.unflatten(0, (-1, self.count)).permute(0, 2, 3, 1, 4).flatten(3)


class TilePyramid:
    """The same tiles at all resolutions of a network that halves its map, as long as that is not too small.

    hole: [H, W] bool, the cells that are asked for; computed: the same with what is computed around them
    resolutions: how many the network has
    smallest: shorter side of the smallest map that has tiles; maps below are computed whole
    """

    def __init__(self, hole: Tensor, computed: Tensor, resolutions: int, smallest: int):
        self.sizes = [size_of(hole)]
        for _ in range(resolutions - 1):
            height, width = self.sizes[-1]
            self.sizes.append((-(-height // 2), -(-width // 2)))
        count = sum(min(size) >= smallest for size in self.sizes)
        self.share = 1.0  # of the finest map that is in tiles
        self.levels: list[TileLevel] = []
        if not count or not bool(computed.any()):
            return
        tiles, device = Tiles.over(computed, 2 ** (count - 1)), hole.device
        self.share = tiles.cells / computed.numel()
        for i, size in enumerate(self.sizes[:count]):
            here = Tiles(tiles.corners // 2**i, (tiles.side[0] // 2**i, tiles.side[1] // 2**i))
            self.levels.append(TileLevel(size, here, device))
