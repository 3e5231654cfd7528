"""The canvas editor's node at work: what was kept goes on to other nodes, and the next hole is generated."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...lazydiff.cache.kv_cache import KVSettings
from ...lazydiff.core.pictures import from_array
from ...lazydiff.pipeline.canvas import Canvas
from ...lazydiff.pipeline.decode import Blend
from .canvas_files import CanvasPicture, load_picture, store_picture
from .canvas_preview import CanvasPreview
from .canvas_request import EMPTY, CanvasRequest
from .canvas_store import CANVASES_AT_HAND, CONTEXTS_AT_HAND, OWNERS, PROMPTS_AT_HAND
from .encode import encode_from_canvas
from .lazy_vae import edit_with, open_with
from .sampling import SamplerSettings, sample_context


class EditSettings(NamedTuple):
    """What the widgets of the node say, beside the sampler's."""

    negative: str
    grow: int
    feather: int
    blend: Blend
    sketch_denoise: float


def picture_and_mask(request: CanvasRequest, image: Tensor | None) -> tuple[CanvasPicture | None, Tensor, Tensor]:
    """The canvas as it is now, [1, H, W, 3], what is painted on it, [1, H, W], and a picture that was opened for it.

    image: [B, H, W, 3], which a canvas that has none yet begins with
    Errors: ValueError for a canvas without a picture.
    """
    opened = None
    if request.canvas:
        pixels = load_picture(request.canvas)
    elif image is not None:
        pixels = (image[0, ..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
        opened = store_picture(pixels, kept=True)
    else:
        raise ValueError(EMPTY)
    return opened, from_array(pixels).movedim(1, -1), painted_mask(request, pixels)


def painted_mask(request: CanvasRequest, pixels: np.ndarray) -> Tensor:
    """[1, H, W] in 0…1"""
    height, width = pixels.shape[:2]
    if request.mask is None:
        return torch.zeros(1, height, width)
    return torch.from_numpy(request.mask.on(width, height)[..., 3].astype(np.float32) / 255)[None]


def generate(
    sockets: tuple[Any, Any, Any], request: CanvasRequest, settings: EditSettings, sampler: SamplerSettings
) -> list[CanvasPicture]:
    """Variations of a request's hole, each a whole canvas; not kept yet. sockets: model, clip, vae"""
    model, clip, vae = sockets
    canvas = canvas_at_hand(vae, request.canvas)
    pixels = load_picture(request.canvas)
    mask = painted_mask(request, pixels)
    edge = settings.grow, settings.feather
    key = request.canvas, hashlib.sha256(mask.numpy().tobytes()).digest(), edge
    context, _ = CONTEXTS_AT_HAND.get(
        key, (model, vae), lambda: encode_from_canvas(model, canvas, mask, edge, KVSettings())
    )
    sketch = painted_sketch(request, pixels)
    if sketch is not None:
        sampler = sampler._replace(denoise=settings.sketch_denoise)
    prompts = prompt_at_hand(clip, request.prompt), prompt_at_hand(clip, settings.negative)
    preview = CanvasPreview(model, context, request.name, sampler.steps)
    latent = sample_context(model, context, prompts, sampler, request.variations, sketch, preview)
    edited, _ = edit_with(canvas, latent["samples"], context, settings.blend)
    return [remembered(vae, edited.row(i), request.tab) for i in range(len(edited.image))]


def canvas_at_hand(vae: Any, id: str) -> Canvas:
    """A picture in latents: as the edit that made it has left it, or encoded anew."""
    canvas: Canvas = CANVASES_AT_HAND.get(
        id, (vae,), lambda: open_with(vae, from_array(load_picture(id)).movedim(1, -1))
    )
    return canvas


def prompt_at_hand(clip: Any, text: str) -> Any:
    return PROMPTS_AT_HAND.get(text, (clip,), lambda: clip.encode_from_tokens_scheduled(clip.tokenize(text)))


def painted_sketch(request: CanvasRequest, pixels: np.ndarray) -> Tensor | None:
    """The canvas with the colours that were painted on it, [1, H, W, 3]."""
    if request.sketch is None:
        return None
    layer = request.sketch.on(pixels.shape[1], pixels.shape[0]).astype(np.float32) / 255
    opacity = layer[..., 3:]
    return torch.from_numpy(layer[..., :3] * opacity + pixels.astype(np.float32) / 255 * (1 - opacity))[None]


def remembered(vae: Any, canvas: Canvas, tab: str) -> CanvasPicture:
    """A variation as a file, and at hand for the stroke that goes on from it."""
    pixels = (canvas.image[0].movedim(0, -1) * 255).round().byte().cpu().numpy()
    picture = store_picture(pixels, kept=False)
    OWNERS.add(picture.id, tab)
    CANVASES_AT_HAND.put(picture.id, (vae,), canvas)
    return picture
