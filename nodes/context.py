"""Contexts: made once, attached to a MODEL, looked at."""

from __future__ import annotations

import sys
from typing import Any

import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..lazydiff.context import LazyContext
from ..lazydiff.masks import binarise, feather, grow, to_grid
from .host.model import LazyModel, attach, lazy_model
from .types import CATEGORY, LazyContextIO


class LazyContextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazyContextEncode",
            display_name="Lazy Context Encode",
            category=CATEGORY,
            description="Looks at the whole canvas once. What it returns serves any number of samplers, seeds and "
            "prompts, each of which then works on the masked part alone.",
            inputs=[
                io.Model.Input("model", tooltip="A LazyDiffusion model; its context encoder does the looking."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The canvas; its sides are multiples of 8 px (large models: 16)."),
                io.Mask.Input("mask", tooltip="What to generate, of the canvas's size: 1 = hole, above 0.5 counts."),
                io.Int.Input("grow", default=0, min=-64, max=64, tooltip="Widen or narrow the hole, in pixels."),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Soften the hole's edge outwards over so many pixels, in the latent's noise mask.",
                ),
            ],
            outputs=[
                LazyContextIO.Output("LAZY_CONTEXT", tooltip="For LazySample and LazyContextApply."),
                io.Latent.Output("LATENT", tooltip="The canvas with its noise mask, for stock samplers."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, vae: Any, image: Tensor, mask: Tensor, grow: int, feather: int) -> io.NodeOutput:
        lazy = lazy_model(model)
        image, soft = canvas_and_mask(image, mask, lazy.network.token)
        soft = soften(soft, grow, feather)
        hole = (soft > 0).float()
        inside = hole.movedim(1, -1)
        bar = comfy.utils.ProgressBar(2 + lazy.network.encoder_depth)
        latent, visible = (encode_image(lazy, vae, each, bar) for each in (image, image * (1 - inside) + inside / 2))
        with counted(lazy, bar):
            context = lazy.context(latent, visible, hole)._replace(space=vae)
        cells = to_grid(soft, lazy.network.token)
        cells = cells.repeat_interleave(lazy.network.patch, 2).repeat_interleave(lazy.network.patch, 3)
        return io.NodeOutput(context, {"samples": latent, "noise_mask": cells})


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
    def execute(cls, model: Any, context: LazyContext) -> io.NodeOutput:
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
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, context: LazyContext) -> io.NodeOutput:
        text = describe(context)
        if "server" in sys.modules:  # the host's; without it there is no UI to show anything
            sys.modules["server"].PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def describe(context: LazyContext) -> str:
    height, width = context.size
    trained = context.network.canvas
    lines = [
        f"canvas: {width}×{height} px" + (f", {len(context.tokens)} of them" if len(context.tokens) > 1 else ""),
        f"hole: {context.hole.count} of {context.hole.total} tokens ({context.share:.0%} of the canvas)",
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


def encode_image(lazy: LazyModel, vae: Any, image: Tensor, bar: comfy.utils.ProgressBar) -> Tensor:
    """Latents [B, C, h, w]. Errors: ValueError for a VAE of another model."""
    latent = vae.encode(image)
    height, width = (side // lazy.network.cell for side in image.shape[1:3])
    if latent.shape[1:] != (lazy.network.channels, height, width):
        raise ValueError(
            f"this VAE makes latents of {latent.shape[1]} channels, the model needs {lazy.network.channels}: "
            "connect the VAE that belongs to the model"
        )
    bar.update(1)
    return latent


class counted:
    """Shows the progress of the context encoder, block by block; this is also where the host can interrupt."""

    def __init__(self, lazy: LazyModel, bar: comfy.utils.ProgressBar):
        self.blocks, self.bar = lazy.encoder.model.blocks, bar

    def __enter__(self) -> None:
        self.hooks = [block.register_forward_hook(lambda *_: self.bar.update(1)) for block in self.blocks]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
