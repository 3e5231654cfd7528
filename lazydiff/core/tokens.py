"""Hole tokens: the patches of the canvas that are to be generated, with their places on the token grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from .masks import to_grid
from .packing import Packing


@dataclass(frozen=True, eq=False)
class HoleTokens:
    """Which tokens of a `grid` (rows, columns) are holes, for a batch of masks of different sizes.

    index: [B, n] int64, places on the flattened grid in row order; rows of fewer than n tokens are padded with 0
    valid: [B, n] bool, False at the padding
    counts: tokens of each row, known without asking the device; None: not known, and there may be padding
    """

    index: Tensor
    valid: Tensor
    grid: tuple[int, int]
    counts: tuple[int, ...] | None

    @classmethod
    def from_mask(cls, mask: Tensor, token: int) -> HoleTokens:
        """The tokens, of `token` pixels per side, that a mask [B, 1, H, W] touches (above 0 = hole)."""
        return cls.from_grid_mask(to_grid(mask.float(), token)[:, 0] > 0)

    @classmethod
    def from_grid_mask(cls, mask: Tensor) -> HoleTokens:
        """Hole tokens of a token mask [B, h, w] bool (True = hole)."""
        flat = rearrange(mask, "b h w -> b (h w)")
        count = flat.sum(1)
        counts = tuple(count.tolist())
        n = max(counts, default=0)
        # A stable sort of "not hole" puts the hole tokens first and keeps their row order.
        index = (~flat).to(torch.uint8).argsort(dim=1, stable=True)[:, :n]
        valid = torch.arange(n, device=mask.device) < count[:, None]
        return cls(index.where(valid, torch.zeros_like(index)), valid, (mask.shape[1], mask.shape[2]), counts)

    @classmethod
    def everything(cls, rows: int, grid: tuple[int, int], device: torch.device | str = "cpu") -> HoleTokens:
        """All tokens of the grid, for a batch of `rows`."""
        return cls.from_grid_mask(torch.ones(rows, *grid, dtype=torch.bool, device=device))

    @property
    def count(self) -> int:
        """Tokens per row, padding included."""
        return self.index.shape[1]

    @property
    def total(self) -> int:
        """Tokens of the whole grid."""
        return self.grid[0] * self.grid[1]

    @property
    def share(self) -> float:
        """Tokens per row as a share of the grid, 0…1."""
        return self.count / self.total

    @property
    def padded(self) -> bool:
        """Whether there is, or may be, any padding."""
        return self.counts is None or any(count < self.count for count in self.counts)

    @cached_property
    def packing(self) -> Packing | None:
        """How to lay the rows end to end, or None when nothing is padded or nobody knows what."""
        if self.counts is None or not self.padded:
            return None
        return Packing.of(self.counts, self.count, self.index.device)

    @property
    def key_mask(self) -> Tensor | None:
        """[B, n] bool for attention (True = attend), or None when nothing is padded and no mask is needed."""
        return self.valid if self.padded else None

    @property
    def positions(self) -> Tensor:
        """[B, n, 2] int64: row and column of each token."""
        return torch.stack((self.index // self.grid[1], self.index % self.grid[1]), dim=-1)

    def cells(self, patch: int) -> Tensor:
        """[B, 1, h·patch, w·patch] bool, the latent cells of the tokens."""
        ones = torch.ones(*self.index.shape, patch**2, device=self.index.device)
        canvas = self.scatter(ones, ones.new_zeros(len(ones), self.total, patch**2))
        return unpatchify(canvas, self.grid, patch) > 0

    def to(self, device: torch.device | str) -> HoleTokens:
        return replace(self, index=self.index.to(device), valid=self.valid.to(device))

    def repeat(self, times: int) -> HoleTokens:
        """Each row repeated `times` times in place: (a, b) -> (a, a, b, b)."""
        index, valid = self.index.repeat_interleave(times, 0), self.valid.repeat_interleave(times, 0)
        counts = None if self.counts is None else tuple(count for count in self.counts for _ in range(times))
        return replace(self, index=index, valid=valid, counts=counts)

    def tile(self, times: int) -> HoleTokens:
        """The whole batch repeated `times` times: (a, b) -> (a, b, a, b)."""
        counts = None if self.counts is None else self.counts * times
        index, valid = self.index.repeat(times, 1), self.valid.repeat(times, 1)
        return replace(self, index=index, valid=valid, counts=counts)

    def keep_padding(self) -> HoleTokens:
        """The same, of which networks are to compute the padding too and only keep others from seeing it."""
        return replace(self, counts=None) if self.padded else self

    def gather(self, tokens: Tensor) -> Tensor:
        """All tokens [B, N, C] -> hole tokens [B, n, C]. Padded places repeat token 0."""
        return tokens.gather(1, self.index[..., None].expand(-1, -1, tokens.shape[-1]))

    def scatter(self, hole: Tensor, canvas: Tensor) -> Tensor:
        """A copy of all tokens [B, N, C] in which the hole tokens [B, n, C] have replaced their own."""
        # Padded rows write into one extra slot that is cut off again, so that token 0 stays as it was.
        spare = torch.cat((canvas, canvas[:, :1]), dim=1)
        index = self.index.where(self.valid, torch.full_like(self.index, self.total))
        return spare.scatter(1, index[..., None].expand(-1, -1, hole.shape[-1]), hole.to(canvas.dtype))[:, :-1]


# PixArt reads patches channel-first (a convolution's weight, flattened) and writes them channel-last.


def patchify(x: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> tokens [B, N, C·p·p] in the order (c, ph, pw)."""
    return rearrange(x, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=patch, pw=patch)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Tokens [B, N, C·p·p] in the order (c, ph, pw) -> [B, C, H, W]; the inverse of `patchify`."""
    return rearrange(tokens, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=grid[0], ph=patch, pw=patch)


def channels_first(tokens: Tensor, patch: int) -> Tensor:
    """Tokens in PixArt's output order (ph, pw, c) -> the order of its input (c, ph, pw)."""
    return rearrange(tokens, "b n (ph pw c) -> b n (c ph pw)", ph=patch, pw=patch)
