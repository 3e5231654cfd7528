"""Self-attention for large canvases: to near tokens one by one, to distant ones in groups."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .layers import CrossAttention

REACH = 3  # windows per side of the square that a window sees token by token; it is in the middle, save at the edges


class Windows(NamedTuple):
    """The windows of a canvas and what each of them sees, by rows and columns of windows.

    Those at the right and lower edge may hold fewer tokens; their other places repeat some that then do not count.
    """

    grid: tuple[int, int]
    size: int  # tokens per side of a window
    own: Tensor  # [rows, columns, size²] places on the flattened grid
    back: Tensor  # [h·w] the way back: the place of each token among those of all windows
    near: Tensor  # [rows, columns, n] places of the tokens that are seen one by one
    bias: Tensor  # [rows, columns, n + rows·columns] logarithm of how many tokens each key stands for

    @classmethod
    def of(cls, grid: tuple[int, int], size: int, device: torch.device) -> Windows:
        """Windows of size×size tokens on a grid (h, w)."""
        (h, w), (rows, columns) = grid, (-(-side // size) for side in grid)
        y, x = (torch.arange(count * size, device=device) for count in (rows, columns))
        places, counted = y.clamp(max=h - 1)[:, None] * w + x.clamp(max=w - 1), (y < h)[:, None] & (x < w)
        own, counted = (rearrange(z, "(r y) (c x) -> r c (y x)", y=size, x=size) for z in (places, counted))

        order = torch.arange(own.numel(), device=device)
        back = rearrange(order, "(r c y x) -> (r y) (c x)", r=rows, y=size, x=size)[:h, :w].flatten()

        beside = near_rows(rows, device), near_rows(columns, device)
        square = beside[0][:, None, :, None], beside[1][None, :, None, :]
        near, alone = (rearrange(z[square], "r c s t n -> r c (s t n)") for z in (own, counted))
        down, across = (z.new_zeros(len(z), len(z)).scatter(1, z, 1) for z in beside)
        distant = 1 - down[:, None, :, None] * across[None, :, None, :]  # [rows, columns, rows, columns]
        groups = (distant * counted.sum(-1)).flatten(2)
        return cls(grid, size, own, back, near, torch.cat((alone, groups), dim=-1).log())


def near_rows(count: int, device: torch.device) -> Tensor:
    """[count, REACH or all] of the rows of windows near each row; columns alike."""
    reach = min(REACH, count)
    first = (torch.arange(count, device=device) - REACH // 2).clamp(0, count - reach)
    return first[:, None] + torch.arange(reach, device=device)


def windowed_attention(attend: CrossAttention, x: Tensor, windows: Windows) -> Tensor:
    """Self-attention of all tokens x [B, h·w, width] of a canvas, in time and memory far below (h·w)².

    A token sees those of its own window and of the windows beside it one by one, and of each other window the mean of
    its keys and of its values, with the weight of as many tokens as that stands for (Bolya et al. 2023, Token Merging,
    3.2: proportional attention). So every token of the canvas is seen, and none of them twice; where all are near, this
    is attention to all tokens.
    """
    keys, values = attend.keys_values(x)
    groups = [group_means(each, windows) for each in (keys, values)]
    out = []
    # Row by row of windows: a token is near to nine windows, and all of those copies at once would fill the memory.
    for own, near, bias in zip(windows.own, windows.near, windows.bias, strict=True):
        columns, b = len(own), len(x)
        seen = [
            torch.cat((rearrange(each[:, :, near], "b h c n d -> (b c) h n d"), group.repeat_interleave(columns, 0)), 2)
            for each, group in zip((keys, values), groups, strict=True)
        ]
        weights = repeat(bias.to(x.dtype), "c n -> (b c) 1 1 n", b=b)
        mixed = attend(rearrange(x[:, own], "b c n d -> (b c) n d"), (seen[0], seen[1]), weights)
        out.append(rearrange(mixed, "(b c) n d -> b (c n) d", b=b))
    return torch.cat(out, dim=1)[:, windows.back]


def group_means(x: Tensor, windows: Windows) -> Tensor:
    """Mean of each window: [B, heads, h·w, d] -> [B, heads, rows·columns, d]."""
    canvas = rearrange(x, "b h (y x) d -> b (h d) y x", y=windows.grid[0])
    means = F.avg_pool2d(canvas, windows.size, ceil_mode=True)  # of a narrower window, of the tokens it has
    return rearrange(means, "b (h d) r c -> b h (r c) d", h=x.shape[1])
