"""Edits in a chain, on a canvas that stays in latents."""

from __future__ import annotations

from typing import Any, get_args

import torch
from comfy_api.latest import io
from torch import Tensor

from ..lazydiff.cache.kv_cache import KVSettings
from ..lazydiff.cache.kv_context import KVContext
from ..lazydiff.model.context import LazyContext
from ..lazydiff.pipeline.canvas import Canvas, finish, masked_latent, start
from ..lazydiff.pipeline.edit import Blend
from .context import canvas_and_mask, check_latent, edge_inputs, learned_context, soften, stock_context, stock_inputs
from .host.kv import downscale, token_size
from .host.lazy_vae import canvas_vae, work
from .host.model import LazyModel
from .host.progress import show
from .types import CATEGORY, LazyCanvasIO, LazyContextIO


class LazyCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazyCanvas",
            display_name="Lazy Canvas",
            category=CATEGORY,
            description="Opens a picture for any number of edits, one after the other: it is encoded once, here, and "
            "stays in latents from edit to edit.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The picture; its sides are multiples of 8 px (large models: 16)."),
            ],
            outputs=[LazyCanvasIO.Output("LAZY_CANVAS", tooltip="For Lazy Canvas Context and Lazy Canvas Edit.")],
        )

    @classmethod
    def execute(cls, vae: Any, image: Tensor) -> io.NodeOutput:
        if not torch.isfinite(image).all():
            raise ValueError("the image has values that are not numbers: the step before failed")
        return io.NodeOutput(start(canvas_vae(vae), image[..., :3].movedim(-1, 1)))


class LazyCanvasContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazyCanvasContext",
            display_name="Lazy Canvas Context",
            category=CATEGORY,
            description="Lazy Context Encode for a Lazy Canvas: the next hole. The canvas is not encoded again.",
            inputs=[
                io.Model.Input("model", tooltip="A LazyDiffusion model, or a stock transformer."),
                LazyCanvasIO.Input("canvas", tooltip="From Lazy Canvas, or from the edit before."),
                io.Mask.Input(
                    "mask",
                    tooltip="What to generate, of the canvas's size: 1 = hole, above 0.5 counts. A batch of masks is "
                    "filled one by one, each with its own sample.",
                ),
                *edge_inputs(),
                *stock_inputs(),
            ],
            outputs=[
                LazyContextIO.Output("LAZY_CONTEXT", tooltip="For LazySample, and then for Lazy Canvas Edit."),
                io.Latent.Output("LATENT", tooltip="The canvas with its noise mask, for stock samplers."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, canvas: Canvas, mask: Tensor, grow: int, feather: int, anchors: int = 0, ring: int = 1,
        keep_text: bool = False, cache_precision: str = "model", cache_place: str = "device", cache_limit: int = 0,
    ) -> io.NodeOutput:  # fmt: skip
        token, cell, channels = sizes_of(model)
        _, soft = canvas_and_mask(canvas.image.movedim(1, -1), mask, token)
        soft = soften(soft, grow, feather)
        latent = canvas.latent.expand(len(soft), *canvas.latent.shape[1:])
        check_latent(latent, channels, *(side // cell for side in soft.shape[-2:]))
        space = canvas.vae.host  # type: ignore[attr-defined]
        if isinstance(model.model, LazyModel):
            visible = masked_latent(canvas, (soft > 0).float())
            return io.NodeOutput(*learned_context(model.model, latent, visible, soft, space))
        settings = KVSettings(anchors, ring, keep_text, cache_precision, cache_place, cache_limit)  # type: ignore[arg-type]
        return io.NodeOutput(*stock_context(model, latent, soft, settings, space))


def sizes_of(model: Any) -> tuple[int, int, int]:
    """Pixels per side of a token and of a latent cell, and the latents' channels, as a MODEL needs them."""
    if isinstance(model.model, LazyModel):
        network = model.model.network
        return network.token, network.cell, network.channels
    return token_size(model), downscale(model), model.model.latent_format.latent_channels


class LazyCanvasEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazyCanvasEdit",
            display_name="Lazy Canvas Edit",
            category=CATEGORY,
            description="Puts what was sampled into the canvas: decodes what has changed, blends it in without a seam, "
            "and keeps the sampled latents as they are for the next edit. Outside the hole every pixel and every "
            "latent stays exactly as it was. Variations of one hole give as many canvases; a batch of holes is filled "
            "on one canvas.",
            inputs=[
                LazyCanvasIO.Input("canvas", tooltip="The canvas that the context was made of."),
                io.Latent.Input("samples", tooltip="From LazySample, or any sampler that had the context's LATENT."),
                LazyContextIO.Input("context", tooltip="From Lazy Canvas Context: it knows where the hole is."),
                io.Combo.Input(
                    "blend",
                    options=list(get_args(Blend)),
                    default="poisson",
                    tooltip="poisson: the new part's detail, without a seam. mixed: the stronger detail of new and "
                    "old. paste: the new part as it is.",
                ),
            ],
            outputs=[
                LazyCanvasIO.Output("LAZY_CANVAS", tooltip="For the next edit."),
                io.Image.Output("IMAGE", tooltip="The picture as it is now."),
            ],
        )

    @classmethod
    def execute(
        cls, canvas: Canvas, samples: dict[str, Tensor], context: LazyContext | KVContext, blend: Blend
    ) -> io.NodeOutput:
        latent = samples["samples"]
        if latent.ndim > canvas.latent.ndim:  # models of videos make frames of pictures
            latent = latent[:, :, 0]
        canvas = finish(canvas, latent, hole_of(context).float(), blend)
        show(work(canvas.vae, canvas.planned))
        return io.NodeOutput(canvas, canvas.image.movedim(1, -1))


def hole_of(context: LazyContext | KVContext) -> Tensor:
    """Pixels of a context's holes [B, 1, H, W], bool."""
    if context.mask is None:
        raise ValueError("this context does not know its mask: make it with Lazy Canvas Context")
    return context.mask
