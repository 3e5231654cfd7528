"""Decoding: sampled tokens among the canvas's own latents, pixels of them, and those pixels in the canvas."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.masks import to_grid
from ..core.poisson import poisson_blend
from ..core.tokens import unpatchify
from ..model.context import LazyContext
from ..model.latent_space import to_pixels
from ..model.lazydiffusion import LazyDiffusion

Blend = Literal["poisson", "mixed", "paste"]


@torch.no_grad()
def decode(model: LazyDiffusion, context: LazyContext, tokens: Tensor) -> Tensor:
    """Hole tokens [S, n, C·p·p] among the canvas's own -> images [S, 3, H, W] in 0…1."""
    return to_pixels(model.latent.decode(to_latents(context.to(tokens.device), tokens)))


def to_latents(context: LazyContext, tokens: Tensor) -> Tensor:
    """Hole tokens [S, n, C·p·p] in their places, all else the canvas's own -> latents [S, C, h, w]."""
    times, grid, patch = len(tokens) // len(context.tokens), context.hole.grid, context.network.patch
    canvas = context.canvas.repeat(times, 1, 1)
    sampled = unpatchify(context.hole.tile(times).scatter(tokens, canvas), grid, patch)
    return composite_latents(unpatchify(canvas, grid, patch), sampled, context.mask, context.network.cell)


def composite_latents(canvas: Tensor, sampled: Tensor, mask: Tensor, cell: int) -> Tensor:
    """Sampled latents in the cells that the mask touches, the canvas's own in all others, bit for bit.

    canvas, sampled: [B, C, h, w], of some VAEs [B, C, 1, h, w]; mask: [M, 1, H, W], B a multiple of M
    Source: paper, section 3.3, equation 5, with the mask max-pooled to the latent's resolution.
    """
    cells = to_grid(mask.float(), cell) > 0
    cells = cells.repeat(len(sampled) // len(cells), 1, 1, 1).to(sampled.device)
    return torch.where(cells if sampled.ndim == 4 else cells.unsqueeze(2), sampled, canvas.to(sampled))


def composite(image: Tensor, generated: Tensor, mask: Tensor, blend: Blend = "poisson") -> Tensor:
    """Generated pixels [S, 3, H, W] inside the mask, the canvas's own outside it, bit for bit.

    The work is done where the generated pixels are; the result has the image's device and number type.
    Errors: ValueError for a blend that does not exist, or generated pixels that are not numbers.
    """
    if blend not in get_args(Blend):
        raise ValueError(f"there is no blend called {blend}: choose {', '.join(get_args(Blend))}")
    canvas, mask = image.to(generated.device).expand_as(generated), mask.to(generated.device)
    mask = mask.expand(len(generated), -1, -1, -1)
    if blend != "paste":
        generated = poisson_blend(canvas, generated, mask, "mixed" if blend == "mixed" else "source").clamp(0, 1)
    elif not torch.isfinite(generated).all():
        raise ValueError("what the model made has values that are not numbers: it cannot be pasted")
    return torch.where(mask > 0, generated.to(canvas.dtype), canvas).to(image.device)
