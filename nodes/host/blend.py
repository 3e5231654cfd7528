"""Blending of the host's pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...lazydiff.core.masks import binarise, grow
from ...lazydiff.core.poisson import poisson_blend
from .device import on_load_device


def blend_pictures(destination: Tensor, source: Tensor, mask: Tensor, gradients: Any, pixels: int) -> Tensor:
    """Pictures [B, H, W, C] with parts of others in them; mask: [B, H, W]; pixels: that the mask is grown by.

    Errors: ValueError for batches that do not go together.
    """
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if source.shape[1:3] != destination.shape[1:3]:
        given, needed = (f"{x.shape[2]}×{x.shape[1]}" for x in (source, destination))
        raise ValueError(
            f"the source is {given} and the destination {needed}: make them the same size. What Lazy Sample made on a "
            "picture of another size than the model's, Lazy VAE Decode gives back at the picture's own"
        )
    rows = max(len(destination), len(source), len(mask))
    sizes = {"destination": len(destination), "source": len(source), "mask": len(mask)}
    if set(sizes.values()) - {1, rows}:
        counts = ", ".join(f"{name} {count}" for name, count in sizes.items())
        raise ValueError(f"batches of different length ({counts}): give as many of each, or one")

    def blend(destination: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        mask = grow(binarise(mask), pixels)
        batches = destination.movedim(-1, 1), source.movedim(-1, 1), mask.to(destination)
        destination, source, mask = (batch.expand(rows, -1, -1, -1) for batch in batches)
        shared = min(destination.shape[1], source.shape[1])  # one of the two may have transparency
        colours, rest = destination[:, :shared], destination[:, shared:]
        # Clipped inside the mask only: a destination may have values beyond 0…1, and they are not ours to change.
        blended = poisson_blend(colours, source[:, :shared], mask, gradients)
        return torch.cat((torch.where(mask > 0, blended.clamp(0, 1), colours), rest), 1).movedim(1, -1)

    return on_load_device(blend, destination, source, mask)
