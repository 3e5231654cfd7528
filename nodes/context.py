"""Contexts: made once, attached to a MODEL, looked at."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..lazydiff.cache.kv_cache import MEGABYTE, KVSettings, dilate
from ..lazydiff.cache.kv_context import KVContext
from ..lazydiff.core.masks import binarise, feather, grow, to_grid
from ..lazydiff.model.context import LazyContext
from .host.contexts import attach, encode_each
from .host.kv import downscale, kv_context, token_size
from .host.model import LazyModel
from .host.progress import counted, show
from .types import CATEGORY, LazyContextIO


class LazyContextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazyContextEncode",
            display_name="Lazy Context Encode",
            category=CATEGORY,
            description="Looks at the whole canvas once. What it returns serves any number of samplers, seeds and "
            "prompts, each of which then works on the masked part alone. A stock transformer (Flux, SD3, Qwen-Image, "
            "PixArt …) becomes lazy too: a few steps compute the whole canvas, and the steps between them reuse what "
            "those knew of the visible part.",
            inputs=[
                io.Model.Input("model", tooltip="A LazyDiffusion model, or a stock transformer."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The canvas; its sides are multiples of 8 px (large models: 16)."),
                io.Mask.Input("mask", tooltip="What to generate, of the canvas's size: 1 = hole, above 0.5 counts."),
                *edge_inputs(),
                *stock_inputs(),
            ],
            outputs=[
                LazyContextIO.Output("LAZY_CONTEXT", tooltip="For LazySample and LazyContextApply."),
                io.Latent.Output("LATENT", tooltip="The canvas with its noise mask, for stock samplers."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, vae: Any, image: Tensor, mask: Tensor, grow: int, feather: int, anchors: int = 0,
        ring: int = 1, keep_text: bool = False, cache_precision: str = "model", cache_place: str = "device",
        cache_limit: int = 0,
    ) -> io.NodeOutput:  # fmt: skip
        if isinstance(model.model, LazyModel):
            return io.NodeOutput(*encode_learned(model.model, vae, image, mask, grow, feather))
        settings = KVSettings(anchors, ring, keep_text, cache_precision, cache_place, cache_limit)  # type: ignore[arg-type]
        return io.NodeOutput(*encode_stock(model, vae, image, mask, grow, feather, settings))


def edge_inputs() -> list[Any]:
    """What becomes of a hole's edge."""
    return [
        io.Int.Input("grow", default=0, min=-64, max=64, tooltip="Widen or narrow the hole, in pixels."),
        io.Int.Input(
            "feather",
            default=0,
            min=0,
            max=64,
            tooltip="Soften the hole's edge outwards over so many pixels, in the latent's noise mask.",
        ),
    ]


def stock_inputs() -> list[Any]:
    """What only stock transformers have a use for; optional, so that older workflows stay whole."""
    only = " Stock transformers only."
    inputs: list[Any] = [
        io.Int.Input(
            "anchors",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="Steps that compute the whole canvas, evenly spaced. 0: as few as the model needs." + only,
        ),
        io.Int.Input(
            "ring",
            default=1,
            min=0,
            max=16,
            optional=True,
            tooltip="Tokens around the hole that are computed with it: slower, closer to a full pass." + only,
        ),
        io.Boolean.Input(
            "keep_text",
            default=False,
            optional=True,
            tooltip="Keep the prompt's tokens between anchors as well: faster, and follows the prompt a little less. "
            "For models whose prompt goes through the same blocks (Flux, SD3, Qwen-Image)." + only,
        ),
        io.Combo.Input(
            "cache_precision",
            options=["model", "fp8"],
            default="model",
            optional=True,
            tooltip="Of what is kept between anchors. fp8 needs half the memory of bf16." + only,
        ),
        io.Combo.Input(
            "cache_place",
            options=["device", "host"],
            default="device",
            optional=True,
            tooltip="Where it is kept during a sampling: on the GPU, or in main memory, which is slower." + only,
        ),
        io.Int.Input(
            "cache_limit",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            tooltip="Most memory for it in MB; 0: no limit. Older anchors are forgotten first." + only,
        ),
    ]
    for each in inputs:  # folded away until asked for
        each.extra_dict["advanced"] = True
    return inputs


def encode_learned(
    lazy: LazyModel, vae: Any, image: Tensor, mask: Tensor, grow: int, feather: int
) -> tuple[LazyContext, dict[str, Tensor]]:
    """A context from the model's own encoder, and the canvas with its noise mask."""
    image, soft = canvas_and_mask(image, mask, lazy.network.token)
    soft = soften(soft, grow, feather)
    inside = (soft > 0).float().movedim(1, -1)
    latent, visible = (
        encode_image(vae, each, lazy.network.cell, lazy.network.channels)
        for each in (image, image * (1 - inside) + inside / 2)
    )
    return learned_context(lazy, latent, visible, soft, vae)


def learned_context(
    lazy: LazyModel, latent: Tensor, visible: Tensor, soft: Tensor, vae: Any
) -> tuple[LazyContext, dict[str, Tensor]]:
    """visible: latents of the canvas with grey in its holes; soft: [B, 1, H, W], holes with soft edges"""
    with counted(lazy.encoder.model.blocks, comfy.utils.ProgressBar(lazy.network.encoder_depth)):
        context = lazy.context(latent, visible, (soft > 0).float())._replace(space=vae, mask=soft > 0)
    return context, {"samples": latent, "noise_mask": noise_mask(soft, lazy.network.token, lazy.network.patch)}


def encode_stock(
    model: Any, vae: Any, image: Tensor, mask: Tensor, grow: int, feather: int, settings: KVSettings
) -> tuple[KVContext, dict[str, Tensor]]:
    """A context that keeps keys and values while samplers run, and the canvas with its noise mask."""
    image, soft = canvas_and_mask(image, mask, token_size(model))
    latent = encode_image(vae, image, downscale(model), model.model.latent_format.latent_channels)
    return stock_context(model, latent, soften(soft, grow, feather), settings, vae)


def stock_context(
    model: Any, latent: Tensor, soft: Tensor, settings: KVSettings, vae: Any
) -> tuple[KVContext, dict[str, Tensor]]:
    """soft: [B, 1, H, W], holes with soft edges"""
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    context = kv_context(model, latent, (soft > 0).float(), settings, vae)._replace(mask=soft > 0)
    if not context.name:
        show(
            f"{type(model.model).__name__} is no transformer that can be lazy: every step computes the whole canvas. "
            "Everything else works the same."
        )
    token = token_size(model)
    cells = noise_mask(soft, token, token // downscale(model))
    # Of as many dimensions as the latent: from fewer the host would take a batch of masks for the frames of one.
    return context, {"samples": latent, "noise_mask": cells.unsqueeze(2) if latent.ndim == 5 else cells}


class LazyContextApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazyContextApply",
            display_name="Lazy Context Apply",
            category=CATEGORY,
            description="Makes KSampler, SamplerCustomAdvanced and every other sampler lazy: give them the MODEL from "
            "here and the LATENT of Lazy Context Encode.",
            inputs=[
                io.Model.Input("model", tooltip="The model that made the context."),
                LazyContextIO.Input("context", tooltip="From Lazy Context Encode."),
            ],
            outputs=[io.Model.Output("MODEL", tooltip="For any sampler or guider.")],
        )

    @classmethod
    def execute(cls, model: Any, context: LazyContext | KVContext) -> io.NodeOutput:
        return io.NodeOutput(attach(model, context))


class LazyContextInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazyContextInfo",
            display_name="Lazy Context Info",
            category=CATEGORY,
            description="Says what a context is made of and what a sampling step on it costs.",
            inputs=[LazyContextIO.Input("context", tooltip="From Lazy Context Encode.")],
            outputs=[io.String.Output("text", tooltip="What the node shows.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, context: LazyContext | KVContext) -> io.NodeOutput:
        text = describe(context)
        show(text)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def describe(context: LazyContext | KVContext) -> str:
    return describe_kv(context) if isinstance(context, KVContext) else describe_learned(context)


def describe_kv(context: KVContext) -> str:
    height, width = context.size
    anchors, settings = context.anchors, context.anchors.settings
    if not context.name:
        return f"canvas: {width}×{height} px\nno transformer that can be lazy: every step computes the whole canvas"
    computed = dilate(context.hole, settings.ring).count
    return "\n".join(
        [
            f"canvas: {width}×{height} px, for {context.name}",
            f"hole: {context.hole.count} of {context.hole.total} tokens ({context.hole.share:.0%} of the canvas)",
            f"between anchor steps: {computed} tokens, with a ring of {settings.ring}",
            f"kept so far: {anchors.count} anchors, {anchors.bytes / MEGABYTE:.1f} MB",
        ]
    )


def describe_learned(context: LazyContext) -> str:
    height, width = context.size
    trained = context.network.canvas
    lines = [
        f"canvas: {width}×{height} px" + (f", {len(context.tokens)} of them" if len(context.tokens) > 1 else ""),
        f"hole: {context.hole.count} of {context.hole.total} tokens ({context.hole.share:.0%} of the canvas)",
        f"context: {context.megabytes:.2f} MB",
        f"a sampling step: {context.cost:.0%} of the work of a full pass",
    ]
    if max(height, width) != trained:
        lines.append(f"note: the model was trained at {trained} px and is at its best there")
    return "\n".join(lines)


def canvas_and_mask(image: Tensor, mask: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """Images [B, H, W, 3] and masks [B, 1, H, W] of one batch size; one of either serves all of the other.

    Errors: ValueError for sizes that do not go together or into whole tokens, and for values that are no numbers.
    """
    image, mask = image[..., :3], mask.reshape(-1, 1, *mask.shape[-2:])
    height, width = image.shape[1:3]
    if mask.shape[-2:] != image.shape[1:3]:
        raise ValueError(
            f"the mask is {mask.shape[-1]}×{mask.shape[-2]} and the image {width}×{height}: make them the same size "
            "(an image without a painted mask comes with an empty one of 64×64)"
        )
    if height % token or width % token:
        raise ValueError(
            f"the canvas is {width}×{height} and this model's tokens are {token} px: scale or crop it so that both "
            f"sides are multiples of {token}"
        )
    if not (torch.isfinite(image).all() and torch.isfinite(mask).all()):
        raise ValueError("the image or the mask has values that are not numbers: the step before failed")
    rows = max(len(image), len(mask))
    if {len(image), len(mask)} - {1, rows}:
        raise ValueError(f"there are {len(image)} images and {len(mask)} masks: give as many masks as images, or one")
    return image.expand(rows, -1, -1, -1), mask.expand(rows, -1, -1, -1)


def soften(mask: Tensor, pixels: int, edge: int) -> Tensor:
    """Mask [B, 1, H, W] of any softness -> 1 on the grown hole, falling to 0 around it."""
    return feather(grow(binarise(mask), pixels), edge)


def noise_mask(soft: Tensor, token: int, patch: int) -> Tensor:
    """Mask [B, 1, H, W] in pixels -> latent cells [B, 1, h, w], alike within a token."""
    return to_grid(soft, token).repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def encode_image(vae: Any, image: Tensor, cell: int, channels: int) -> Tensor:
    """Latents [B, C, h, w], of some VAEs [B, C, 1, h, w]. Errors: ValueError for a VAE of another model."""
    latent = encode_each(vae, image)
    check_latent(latent, channels, image.shape[1] // cell, image.shape[2] // cell)
    return latent


def check_latent(latent: Tensor, channels: int, height: int, width: int) -> None:
    if (latent.shape[1], *latent.shape[-2:]) != (channels, height, width):
        raise ValueError(
            f"this VAE makes latents of {latent.shape[1]} channels, {latent.shape[-1]}×{latent.shape[-2]}; the model "
            f"needs {channels}, {width}×{height}: connect the VAE that belongs to the model"
        )
