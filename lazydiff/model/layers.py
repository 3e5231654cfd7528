"""The parts that encoder and decoder share, built from injected layer classes and an injected attention function."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..core.packing import Packing
from .config import NetworkConfig

# Called as attention(q, k, v, mask): [B, heads, n, dim] each; mask [B, 1, 1, keys], bool (True = attend) or numbers of
# q's type that are added to the scores, or None.
AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# Called as kv_hook(k, v) -> k, v: sees a self-attention's keys and values [B, heads, n, dim], and may add to them.
KVHook = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ROTARY_BASE = 100.0  # of rotary frequencies: grids have tens of tokens a side, where sentences have thousands
# Called as gate(module, prepare, *others): the output of module(prepare(), *others), or what stands in for it.
Gate = Callable[..., Tensor]


class TokenLayout(NamedTuple):
    """How the tokens of a batch lie, as their self-attention has to know it.

    mask: of their keys, see `AttentionFunction`
    packing: of rows that are laid end to end, which then need no mask
    rotation: [B or 1, n, 2 · dim] of their places, see `rotate`; None: their places are in the tokens
    """

    mask: Tensor | None = None
    packing: Packing | None = None
    rotation: Tensor | None = None

    def of(self, rows: Tensor) -> TokenLayout:
        """That of some rows of a batch that is not packed."""
        mask, rotation = (None if each is None else each[rows] for each in (self.mask, self.rotation))
        return TokenLayout(mask, None, rotation)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Torch's scaled dot-product attention, the default attention function."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same, written out, with the scores normalised in fp32; on a CPU it trains several times faster."""
    return attention_maps(q, k, mask).to(v.dtype) @ v


def attention_maps(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Shares [B, heads, queries, keys] of the keys in each query's attention, in fp32."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def within_rows(attention: AttentionFunction, packing: Packing, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of packed tokens to those of their own row; all [1, heads, Σn, dim]."""
    groups = zip(packing.take_apart(q), packing.take_apart(k), packing.take_apart(v), strict=True)
    return packing.put_together(attention(*group, None) for group in groups)


def to_rows(
    attention: AttentionFunction, packing: Packing, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of packed tokens [1, heads, Σn, dim] to what their rows have, [B, heads, L, dim]; mask: [B, 1, 1, L]"""
    return packing.put_together(
        attention(part, k[rows], v[rows], None if mask is None else mask[rows])
        for part, (rows, _, _) in zip(packing.take_apart(q), packing.groups, strict=True)
    )


def always(module: Callable[..., Tensor], prepare: Callable[[], Tensor], *others: Any) -> Tensor:
    """The gate that computes every module."""
    return module(prepare(), *others)


def key_padding(valid: Tensor | None) -> Tensor | None:
    """Key mask [B, n] -> the shape attention wants, [B, 1, 1, n]."""
    return None if valid is None else valid[:, None, None, :]


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Key mask [B, n] of bool -> numbers to add to the scores, which attention would make of it anew at every call.

    They are finite, because not all attention functions take others.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def modulate(x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """adaLN's x · (1 + scale) + shift; factor: 1 + scale"""
    return torch.addcmul(shift, x, factor)


def sinusoid(x: Tensor, dim: int = 256) -> Tensor:
    """Numbers [B] -> [B, dim], cosines first (Vaswani et al. 2017, in DiT's order)."""
    angle = x.float()[:, None] * frequencies(dim // 2, x.device)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # as of `position_table`
def frequencies(count: int, device: torch.device, max_period: float = 10000.0) -> Tensor:
    """Those of `sinusoid` [count], falling from 1; made once per device."""
    return torch.exp(-math.log(max_period) * torch.arange(count).float() / count).to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def size_table(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sinusoids [3, 256] of a canvas's sides in pixels and of their ratio: PixArt-α's micro-conditions, made once."""
    return sinusoid(torch.tensor([height, width, height / width])).to(device, dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the host samples in inference mode, whose tensors no later training could use
def position_table(
    grid: tuple[int, int], dim: int, base: int, interpolation: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Fixed 2-D sine-cosine table [h·w, dim], columns (x) first, as PixArt-α computes it; made once per device.

    base: side of the grid that positions are scaled to; interpolation: what they are divided by.
    """
    h, w = grid
    y, x = (torch.arange(side, dtype=torch.float64) * (base / side) / interpolation for side in (h, w))
    y, x = place_angles(y, x, 10000.0, dim // 4)
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1).to(device, dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rotation_table(grid: tuple[int, int], dim: int, device: torch.device) -> Tensor:
    """What turns a head's queries and keys at each place, [h·w, 2 · dim] in fp32: cosines of the angles, then their
    sines with the signs that `rotate` needs; made once per device.

    A pair is a channel of the first half and its fellow of the second; half of the pairs turn by the row, the others by
    the column.
    """
    y, x = (torch.arange(side, dtype=torch.float64) for side in grid)
    angles = torch.cat(place_angles(y, x, ROTARY_BASE, dim // 4), dim=1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos, -sin, sin), dim=1).to(device, torch.float32)


def place_angles(y: Tensor, x: Tensor, base: float, count: int) -> tuple[Tensor, Tensor]:
    """Rows [h] and columns [w] times frequencies that fall from 1 towards 1 / base: [h·w, count] of either."""
    omega = base ** (-torch.arange(count, dtype=torch.float64) / count)
    rows, columns = (axis.flatten()[:, None] * omega for axis in torch.meshgrid(y, x, indexing="ij"))
    return rows, columns


def rotate(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Queries or keys [..., B, heads, n, dim] turned by `rotation`, [B or 1, n, 2 · dim] of `rotation_table`.

    Source: Su et al. 2021 (RoFormer), equation 34; rows and columns apart as in Flux.
    """
    if rotation is None:
        return x
    cos, sin = rotation[:, None].chunk(2, dim=-1)
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


def placed(x: Tensor, index: Tensor, grid: tuple[int, int], config: NetworkConfig) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, n, d] told of their places, index [B or 1, n] on the grid: by what is added to them, or by what their
    queries and keys are to be turned by, [B or 1, n, 2 · d / heads]."""
    if config.rotary:
        return x, rotation_table(grid, config.width // config.heads, x.device)[index]
    table = position_table(grid, config.width, config.grid, config.interpolation, x.device, x.dtype)
    return x + table[index], None


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, out: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.fc1 = operations.Linear(dim, hidden, **factory)
        self.fc2 = operations.Linear(hidden, out, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SelfAttention(nn.Module):
    def __init__(
        self, dim: int, heads: int, operations: Any = nn, attention: AttentionFunction = sdpa, **factory: Any
    ):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.qkv = operations.Linear(dim, 3 * dim, **factory)
        self.proj = operations.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, layout: TokenLayout, kv_hook: KVHook | None = None) -> Tensor:
        mask, packing, rotation = layout
        qkv = rearrange(self.qkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        (q, k), v = rotate(qkv[:2], rotation), qkv[2]
        if kv_hook is not None:
            k, v = kv_hook(k, v)
        y = self.attention(q, k, v, mask) if packing is None else within_rows(self.attention, packing, q, k, v)
        return self.proj(rearrange(y, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Attention of `x` to keys and values computed apart: once per prompt, or from more tokens than have queries."""

    def __init__(
        self, dim: int, heads: int, operations: Any = nn, attention: AttentionFunction = sdpa, **factory: Any
    ):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.q_linear = operations.Linear(dim, dim, **factory)
        self.kv_linear = operations.Linear(dim, 2 * dim, **factory)
        self.proj = operations.Linear(dim, dim, **factory)

    def keys_values(self, source: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor]:
        k, v = rearrange(self.kv_linear(source), "b l (kv h d) -> kv b h l d", kv=2, h=self.heads)
        return rotate(k, rotation), v

    def queries(self, x: Tensor) -> Tensor:
        return rearrange(self.q_linear(x), "b n (h d) -> b h n d", h=self.heads)

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None = None, packing: Packing | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """packing, rotation: of x; keys, values and mask are the rows' own"""
        attention = self.attention if packing is None else partial(to_rows, self.attention, packing)
        attended = attention(rotate(self.queries(x), rotation), *keys_values, mask)
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))
