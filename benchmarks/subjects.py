"""What several benchmarks measure: masks and holes of a given size, a decoder's call, Stable Diffusion's VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import NetworkConfig
from lazydiff.model.decoder import LazyDecoder

PUBLISHED = (128, 256, 512, 512)  # channels of Stable Diffusion's VAE
INSIDE = (0.505, 0.505)


def square_mask(size: int, percent: float, place: tuple[float, float] = INSIDE) -> Tensor:
    """A mask [1, 1, size, size] of that share, off the grid of latents; place: from 0, at top or left, to 1."""
    side = round(size * (percent / 100) ** 0.5)
    top, left = (int(along * (size - side)) for along in place)
    mask = torch.zeros(1, 1, size, size)
    mask[..., top : top + side, left : left + side] = 1
    return mask


def tokens_of(config: NetworkConfig, percent: float) -> int:
    """How many tokens of the canvas that share is."""
    return max(1, round(config.grid**2 * percent / 100))


def first_tokens(config: NetworkConfig, counts: Sequence[int]) -> HoleTokens:
    """Holes of the canvas's first tokens, so many in each row: where they lie makes no difference to time."""
    places = torch.arange(config.grid**2).view(1, config.grid, config.grid)
    return HoleTokens.from_grid_mask(torch.cat([places < count for count in counts]))


def decoder_call(decoder: LazyDecoder, hole: HoleTokens, context: bool = True) -> Callable[..., Tensor]:
    """A call of the decoder on noise, bound to all that is known before the first step, prompt keys among it.

    context: whether there is one; further arguments of the decoder may be given with the call
    """
    config, weight = decoder.config, decoder.x_embedder.proj.weight
    rows, n = hole.index.shape
    noise = partial(torch.randn, device=weight.device, dtype=weight.dtype)
    text = decoder.text_keys(noise(rows, config.text_length, config.text_width))
    x, t = noise(rows, n, weight[0].numel()), torch.full((1,), 500, device=weight.device)
    known = noise(rows, n, config.width) if context else None
    return partial(decoder, x, t, text, hole.to(weight.device), known)


def make_vae(channels: Sequence[int] = PUBLISHED, groups: int = 32) -> AutoencoderKL:
    """Stable Diffusion's VAE with random weights."""
    vae = AutoencoderKL(
        block_out_channels=tuple(channels), norm_num_groups=groups, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return vae.eval().requires_grad_(False)
