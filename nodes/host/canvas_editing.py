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
    height, width = pixels.shape[:2]
    mask = torch.zeros(height, width)
    if request.mask is not None:
        mask = torch.from_numpy(request.mask.on(width, height)[..., 3].astype(np.float32) / 255)
    return opened, from_array(pixels).movedim(1, -1), mask[None]


def generate(
    sockets: tuple[Any, Any, Any], request: CanvasRequest, painted: tuple[Tensor, Tensor], settings: EditSettings,
    sampler: SamplerSettings,
) -> list[CanvasPicture]:  # fmt: skip
    """Variations of a request's hole, each a whole canvas; not kept yet.

    sockets: model, clip, vae; painted: the canvas and its mask, as of `picture_and_mask`
    """
    (model, clip, vae), (picture, mask) = sockets, painted
    canvas: Canvas = CANVASES_AT_HAND.get(request.canvas, (vae,), lambda: open_with(vae, picture))
    edge = settings.grow, settings.feather
    key = request.canvas, hashlib.sha256(mask.numpy().tobytes()).digest(), edge
    context, _ = CONTEXTS_AT_HAND.get(
        key, (model, vae), lambda: encode_from_canvas(model, canvas, mask, edge, KVSettings())
    )
    sketch = painted_sketch(request, picture)
    if sketch is not None:
        sampler = sampler._replace(denoise=settings.sketch_denoise)
    prompts = prompt_at_hand(clip, request.prompt), prompt_at_hand(clip, settings.negative)
    preview = CanvasPreview(model, context, request.name, sampler.steps)
    latent = sample_context(model, context, prompts, sampler, request.variations, sketch, preview)
    edited, _ = edit_with(canvas, latent["samples"], context, settings.blend)
    return [remembered(vae, edited.row(i), request.tab) for i in range(len(edited.image))]


def prompt_at_hand(clip: Any, text: str) -> Any:
    return PROMPTS_AT_HAND.get(text, (clip,), lambda: clip.encode_from_tokens_scheduled(clip.tokenize(text)))


def painted_sketch(request: CanvasRequest, picture: Tensor) -> Tensor | None:
    """The canvas [1, H, W, 3] with the colours that were painted on it."""
    if request.sketch is None:
        return None
    layer = torch.from_numpy(request.sketch.on(picture.shape[2], picture.shape[1]).astype(np.float32) / 255)
    return torch.lerp(picture, layer[None, ..., :3], layer[None, ..., 3:])


def remembered(vae: Any, canvas: Canvas, tab: str) -> CanvasPicture:
    """A variation as a file, and at hand for the stroke that goes on from it."""
    pixels = (canvas.image[0].movedim(0, -1) * 255).round().byte().cpu().numpy()
    picture = store_picture(pixels, kept=False)
    OWNERS.add(picture.id, tab)
    CANVASES_AT_HAND.put(picture.id, (vae,), canvas)
    return picture
