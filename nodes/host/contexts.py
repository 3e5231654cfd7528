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


def attach(model: Any, context: LazyContext | KVContext) -> Any:
    """A clone of the MODEL whose samplings are of this context. Errors: ValueError for a context of another model."""
    if isinstance(context, LazyContext):
        return attach_learned(model, context)
    if context.model() is not model.model:
        raise ValueError("this context was made for another model: encode the canvas again with this one")
    return KVSampling(model, context).attach(model)


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
    fitted = context.fitted if isinstance(context, LazyContext) else None
    height, width = fitted.fit.canvas if fitted else context.size
    if sketch.shape[1:3] != (height, width):
        size = f"{sketch.shape[2]}×{sketch.shape[1]}"
        raise ValueError(f"the sketch is {size} and the canvas {width}×{height}: make them the same size")
    if len(sketch) not in (1, len(context.canvas)):
        raise ValueError(f"there are {len(sketch)} sketches for {len(context.canvas)} canvases: give one, or one each")
    sketch = sketch[..., :3]
    if fitted:
        sketch = fitted.fit.to_model(sketch.movedim(-1, 1), sketch[:, None, ..., 0])[0].movedim(1, -1)
    return encode_each(context.vae, sketch)


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
        lines = [f"canvas: {width}×{height} px", "not a transformer that can be lazy: every step computes everything"]
    else:
        computed = dilate(context.hole, context.settings.ring).count
        lines = [
            f"canvas: {width}×{height} px, for {context.name}",
            hole,
            f"a sampling step: {computed} tokens, with a ring of {context.settings.ring}",
        ]
        if context.settings.recorded or context.settings.reuse:
            cache, what = cache_of(context), "recordings" if context.settings.recorded else "anchors"
            lines.append(f"kept so far: {cache.count} {what}, {cache.bytes / MEGABYTE:.1f} MB")
    return "\n".join(lines)
