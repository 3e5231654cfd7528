"""Self-attention for large canvases: to near tokens one by one, to distant ones in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from .layers import CrossAttention

REACH = 3  # windows per side of the square that a window sees token by token; it is in the middle, save at the edges
ALONE = 16  # one in so many tokens of a distant window is seen by itself: the mean would hide what is unlike the rest


class Windows(NamedTuple):
    """The windows of a canvas and what each of them sees, by rows and columns of windows.

    Those at the right and lower edge may hold fewer tokens; their other places repeat some that then do not count.
    """

    grid: tuple[int, int]
    size: int  # tokens per side of a window
    own: Tensor  # [rows, columns, size²] places on the flattened grid
    counted: Tensor  # [rows, columns, size²] bool, False at the repeated ones
    back: Tensor  # [h·w] the way back: the place of each token among those of all windows
    near: Tensor  # [rows, columns, n] places of the tokens that are seen one by one
    bias: Tensor  # [rows, columns, n + keys of all windows] logarithm of how many tokens each key stands for

    @classmethod
    def of(cls, grid: tuple[int, int], size: int, device: torch.device) -> Windows:
        """Windows of size×size tokens on a grid (h, w)."""
        (h, w), (rows, columns) = grid, (-(-side // size) for side in grid)
        y, x = (torch.arange(count * size, device=device) for count in (rows, columns))
        places, inside = y.clamp(max=h - 1)[:, None] * w + x.clamp(max=w - 1), (y < h)[:, None] & (x < w)
        own, counted = (rearrange(z, "(r y) (c x) -> r c (y x)", y=size, x=size) for z in (places, inside))
        order = torch.arange(own.numel(), device=device)
        back = rearrange(order, "(r c y x) -> (r y) (c x)", r=rows, y=size, x=size)[:h, :w].flatten()

        beside = near_rows(rows, device), near_rows(columns, device)
        square = beside[0][:, None, :, None], beside[1][None, :, None, :]
        near, single = (rearrange(z[square], "r c s t n -> r c (s t n)") for z in (own, counted))
        down, across = (z.new_zeros(len(z), len(z)).scatter(1, z, 1) for z in beside)
        distant = 1 - down[:, None, :, None] * across[None, :, None, :]  # [rows, columns, rows, columns]
        tokens, alone = counted.sum(-1, keepdim=True), torch.arange(apart(size), device=device)
        weights = torch.cat((alone < tokens, (tokens - len(alone)).clamp(min=0)), dim=-1)
        groups = (distant[..., None] * weights).flatten(2)
        return cls(grid, size, own, counted, back, near, torch.cat((single, groups), dim=-1).log())


def near_rows(count: int, device: torch.device) -> Tensor:
    """[count, REACH or all] of the rows of windows near each row; columns alike."""
    reach = min(REACH, count)
    first = (torch.arange(count, device=device) - REACH // 2).clamp(0, count - reach)
    return first[:, None] + torch.arange(reach, device=device)


def apart(size: int) -> int:
    """How many tokens of a distant window are seen by themselves."""
    return max(size**2 // ALONE, 1)


def windowed_attention(attend: CrossAttention, x: Tensor, windows: Windows) -> Tensor:
    """Self-attention of all tokens x [B, h·w, width] of a canvas, in time and memory far below (h·w)².

    A token sees those of its own window and of the windows beside it one by one; of each other window those least like
    the rest, and of the rest the mean of keys and of values, with the weight of as many tokens as that stands for
    (Bolya et al. 2023, Token Merging, 3.2: proportional attention). So every token of the canvas is seen, and none of
    them twice; where all are near, this is attention to all tokens.
    """
    keys_values = [z.contiguous() for z in attend.keys_values(x)]  # tokens are gathered from it by rows of `dim`
    groups = grouped(keys_values, windows)
    out = []
    # Row by row of windows: a token is near to nine windows, and all of those copies at once would fill the memory.
    for own, near, bias in zip(windows.own, windows.near, windows.bias, strict=True):
        b, columns = len(x), len(own)
        keys, values = (
            torch.cat(
                (rearrange(gathered(z, near), "b h c n d -> (b c) h n d"), group.repeat_interleave(columns, 0)), dim=2
            )
            for z, group in zip(keys_values, groups, strict=True)
        )
        weights = repeat(bias.to(x.dtype), "c n -> (b c) 1 1 n", b=b)
        mixed = attend(rearrange(x[:, own], "b c n d -> (b c) n d"), (keys, values), weights)
        out.append(rearrange(mixed, "(b c) n d -> b (c n) d", b=b))
    return torch.cat(out, dim=1)[:, windows.back]


def grouped(keys_values: Sequence[Tensor], windows: Windows) -> list[Tensor]:
    """Keys and values by which windows are seen from far, [B, heads, keys of all windows, d] each.

    Of every window those of the tokens whose keys are least like their mean, and the mean of its other tokens.
    """
    keys, values = (gathered(z, windows.own) for z in keys_values)  # [B, heads, rows, columns, size², d]
    unlike = (keys - mean(keys, windows.counted)).square().sum((1, -1), dtype=torch.float32)  # too large for fp16
    alone = unlike.masked_fill(~windows.counted, -1).topk(apart(windows.size)).indices  # [B, rows, columns, n]
    others = windows.counted.expand_as(unlike).scatter(-1, alone, False)
    seen = []
    for z in (keys, values):
        single = z.gather(-2, repeat(alone, "b r c n -> b h r c n d", h=z.shape[1], d=z.shape[-1]))
        seen.append(rearrange(torch.cat((single, mean(z, others[:, None])), dim=-2), "b h r c n d -> b h (r c n) d"))
    return seen


def gathered(x: Tensor, places: Tensor) -> Tensor:
    """[B, heads, h·w, d], places [...] -> [B, heads, ..., d]; as indexing, and on a CPU faster."""
    return x.index_select(2, places.flatten()).unflatten(2, places.shape)


def mean(x: Tensor, counted: Tensor) -> Tensor:
    """Of the tokens that count, [..., n, d] -> [..., 1, d]; 0 where none does."""
    counted = counted[..., None]
    return (x * counted).sum(-2, keepdim=True) / counted.sum(-2, keepdim=True).clamp(min=1)
