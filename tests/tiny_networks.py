"""Encoders and decoders of next to no size, and random inputs for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import PRESETS, NetworkConfig

TINY = NetworkConfig(
    canvas=1024, cell=8, channels=4, patch=2, width=48, heads=4, decoder_depth=2, encoder_depth=3,
    text_width=32, text_length=12,
)  # fmt: skip
ROTARY = replace(TINY, rotary=True, micro_conditions=False)  # nothing but offsets tells where a token is
SMALL = replace(PRESETS["small"], decoder_depth=2)  # a token is one latent cell; no variance


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention in separate steps, which every counter and every device knows."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def random_prompts(config: NetworkConfig, *lengths: int) -> tuple[Tensor, Tensor]:
    """Text [B, L, text_width] and its key mask; what lies under the padding is large and must not matter."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    text = torch.randn(*mask.shape, config.text_width)
    return text.where(mask[..., None], torch.tensor(100.0)), mask


def random_mask(grid: tuple[int, int], *counts: int) -> Tensor:
    """[B, h, w] bool with that many holes in each row."""
    rows = [torch.randperm(grid[0] * grid[1]) < count for count in counts]
    return torch.stack(rows).unflatten(1, grid)


def random_inputs(config: NetworkConfig, hole: HoleTokens) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy tokens, times and context for `LazyDecoder`."""
    b, n = hole.index.shape
    return (
        torch.randn(b, n, config.channels * config.patch**2),
        torch.randint(0, 1000, (b,)),
        torch.randn(b, n, config.width),
    )
