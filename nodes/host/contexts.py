"""Contexts of both kinds: attached to the MODEL that they are for, and told in words."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...lazydiff.cache.kv_cache import MEGABYTE, dilate
from ...lazydiff.cache.kv_context import KVContext, cache_of
from ...lazydiff.core.tokens import unpatchify
from ...lazydiff.model.context import LazyContext
from .encode import encode_each, fit_text
from .kv_sampling import KVSampling
from .model import attach_learned
from .unet import UNET, is_unet, step_text
from .unet_sampling import UNetSampling


def attach(model: Any, context: LazyContext | KVContext) -> Any:
    """A clone of the MODEL whose samplings are of this context. Errors: ValueError for a context of another model."""
    if isinstance(context, LazyContext):
        return attach_learned(model, context)
    if context.model() is not model.model:
        raise ValueError("this context was made for another model: encode the canvas again with this one")
    kind = UNetSampling if is_unet(model) else KVSampling
    return kind(model, context).attach(model)


def whole_canvas(context: LazyContext | KVContext) -> tuple[Tensor, Tensor]:
    """Latents of the canvases and a mask bool of the cells that are to be generated, of as many dimensions."""
    if isinstance(context, LazyContext):
        canvas = unpatchify(context.canvas, context.hole.grid, context.network.patch)
        return canvas, context.hole.cells(context.network.patch)
    canvas = context.canvas
    mask = context.hole.cells(canvas.shape[-1] // context.hole.grid[1])
    return canvas, mask.unsqueeze(2) if canvas.ndim == 5 else mask


def encode_sketch(context: LazyContext | KVContext, sketch: Tensor) -> Tensor:
    """Latents of sketches [B, H, W, 3], by the context's own VAE. Errors: ValueError for one of another size."""
    seen = as_seen(context, sketch[..., :3], "sketch")
    if len(sketch) not in (1, len(context.canvas)):
        raise ValueError(f"there are {len(sketch)} sketches for {len(context.canvas)} canvases: give one, or one each")
    return encode_each(context.vae, seen)


def as_seen(context: LazyContext | KVContext, picture: Tensor, name: str) -> Tensor:
    """Pictures [B, H, W, C] of the canvas's size as the model sees them: fitted like the canvas. name: for errors

    Errors: ValueError for pictures of another size.
    """
    height, width = context.fitted.fit.canvas if context.fitted else context.size
    if picture.shape[1:3] != (height, width):
        size = f"{picture.shape[2]}×{picture.shape[1]}"
        raise ValueError(f"the {name} is {size} and the canvas {width}×{height}: make them the same size")
    if not context.fitted:
        return picture
    return context.fitted.fit.to_model(picture.movedim(-1, 1), picture[:, None, ..., 0])[0].movedim(1, -1)


def context_text(context: LazyContext | KVContext) -> str:
    """What a context is made of, line by line."""
    height, width = context.size
    hole = f"hole: {context.hole.count} of {context.hole.total} tokens ({context.hole.share:.0%} of the canvas)"
    if isinstance(context, LazyContext):
        lines = [
            f"canvas: {width}×{height} px" + (f", {len(context.tokens)} of them" if len(context.tokens) > 1 else ""),
            hole,
            f"context: {context.megabytes:.2f} MB",
            f"a sampling step: {context.cost:.0%} of the work of a full pass",
        ]
        if context.fitted is not None:
            lines.append(fit_text(context.fitted.fit))
        elif max(height, width) != context.network.canvas:
            lines.append(f"note: the model was trained at {context.network.canvas} px and is at its best there")
    elif not context.name:
        lines = [f"canvas: {width}×{height} px", "not of a kind that can be lazy: every step computes everything"]
    else:
        computed = dilate(context.hole, context.settings.ring).count
        lines = [
            f"canvas: {width}×{height} px, for {context.name}",
            hole,
            step_text(context) if context.name == UNET else
            f"a sampling step: {computed} tokens, with a ring of {context.settings.ring}",
        ]
        if context.settings.recorded or context.settings.reuse:
            cache, what = cache_of(context), "recordings" if context.settings.recorded else "anchors"
            lines.append(f"kept so far: {cache.count} {what}, {cache.bytes / MEGABYTE:.1f} MB")
    if isinstance(context, KVContext) and context.fitted is not None:
        lines.append(fit_text(context.fitted.fit))
    return "\n".join(lines)
