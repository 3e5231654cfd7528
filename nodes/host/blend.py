"""Blending of the host's pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...lazydiff.cache.kv_context import KVContext
from ...lazydiff.core.colours import match_colours
from ...lazydiff.core.masks import binarise, bounds, grow
from ...lazydiff.core.poisson import poisson_blend
from ...lazydiff.model.context import LazyContext
from ...lazydiff.pipeline.encode import size_text
from ...lazydiff.pipeline.fit import Region, extent
from .device import on_load_device

AROUND = 64  # px around the hole that blending may look at: those that colours are compared in


def blend_pictures(
    destination: Tensor, source: Tensor, mask: Tensor, gradients: Any, pixels: int, match: bool = False,
    context: LazyContext | KVContext | None = None,
) -> Tensor:  # fmt: skip
    """Pictures [B, H, W, C] with parts of others in them; mask: [B, H, W]; pixels: that the mask is grown by; match:
    the colours around it, too; context: how a source that is of its model's size lies on the destination

    Beside the result, time and memory are those of the hole.
    Errors: ValueError for batches and sizes that do not go together.
    """
    mask, home = mask.reshape(-1, 1, *mask.shape[-2:]), destination
    destination, source = destination.movedim(-1, 1), source.movedim(-1, 1)
    region, source = on_destination(destination, source, context)
    if mask.shape[-2:] != destination.shape[-2:]:
        raise ValueError(f"the mask is {size_text(mask)} and the destination {size_text(destination)}: make them the "
                         "same size")  # fmt: skip
    rows = max(len(destination), len(source), len(mask))
    sizes = {"destination": len(destination), "source": len(source), "mask": len(mask)}
    if set(sizes.values()) - {1, rows}:
        counts = ", ".join(f"{name} {count}" for name, count in sizes.items())
        raise ValueError(f"batches of different length ({counts}): give as many of each, or one")

    def blend(destination: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        mask = grow(binarise(mask), pixels).to(destination)
        destination, source, mask = (batch.expand(rows, -1, -1, -1) for batch in (destination, source, mask))
        shared = min(destination.shape[1], source.shape[1])  # one of the two may have transparency
        colours, rest, source = destination[:, :shared], destination[:, shared:], source[:, :shared]
        source = match_colours(source, colours, mask) if match else source
        # Clipped inside the mask only: a destination may have values beyond 0…1, and they are not ours to change.
        blended = poisson_blend(colours, source, mask, gradients)
        return torch.cat((torch.where(mask > 0, blended.clamp(0, 1), colours), rest), 1)

    result = home.repeat(rows // len(home), 1, 1, 1)
    parts = [region.of(each) for each in (result.movedim(-1, 1), mask)]
    if box := bounds(parts[1] > 0.5):
        size = [end - first + 2 * (AROUND + max(pixels, 0)) for first, end in box]
        near = Region.around(box, size, region[2:])
        part = near.of(parts[0])
        part.copy_(on_load_device(blend, part, near.of(source), near.of(parts[1])))
    return result


def on_destination(
    destination: Tensor, source: Tensor, context: LazyContext | KVContext | None
) -> tuple[Region, Tensor]:
    """Where on the destination a source lies, and the source at that size.

    Errors: ValueError for a source that lies nowhere, and for another picture than the context's.
    """
    whole, given, needed = Region(0, 0, *extent(destination)), size_text(source), size_text(destination)
    if context is not None and context.fitted is not None:
        fit = context.fitted.fit
        if extent(destination) != fit.canvas:
            raise ValueError(f"the destination is {needed}, and the context was made of {fit.canvas[1]}×"
                             f"{fit.canvas[0]}: give that picture")  # fmt: skip
        if extent(source) == fit.outer:
            return fit.region, fit.from_model(source)
    if extent(source) != extent(destination):
        raise ValueError(
            f"the source is {given} and the destination {needed}: make them the same size. What was sampled on a "
            "picture of another size than the model's, this node brings back when it is given the context, and Lazy "
            "VAE Decode by itself"
        )
    return whole, source
