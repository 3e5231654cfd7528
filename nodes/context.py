"""Contexts: made once, attached to a MODEL, looked at."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from .host.contexts import as_seen, attach, context_text
from .host.encode import encode_context
from .inputs import edge_inputs, kv_settings, node_schema, recording_inputs, stock_inputs, zoom_inputs, zoom_settings
from .types import AnyContext, LazyContextIO


class LazyContextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyContextEncode",
            "Lazy Context Encode",
            description="Looks at the whole canvas once. What it returns serves any number of samplers, seeds and "
            "prompts, each of which then works on the masked part alone. A stock transformer (Flux, SD3, Qwen-Image, "
            "PixArt …) becomes lazy too: what the hole looks at is recorded before the first step, and every step "
            "computes the hole alone. SD 1.5 and SDXL too, but that some steps compute everything.",
            aliases=[
                "inpaint", "local edit", "regional edit", "masked edit", "generative fill", "outpaint",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A LazyDiffusion model, or a stock transformer."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The canvas, of any size."),
                io.Mask.Input("mask", tooltip="What to generate, of the canvas's size: 1 = hole, above 0.5 counts."),
                *edge_inputs(),
                *stock_inputs(),
                *zoom_inputs(),
                *recording_inputs(),
            ],
            outputs=[
                LazyContextIO.Output("LAZY_CONTEXT", tooltip="For LazySample and LazyContextApply."),
                io.Latent.Output("LATENT", tooltip="The canvas with its noise mask, for stock samplers."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, vae: Any, image: Tensor, mask: Tensor, grow: int, feather: int, **stock: Any
    ) -> io.NodeOutput:
        zoom = zoom_settings(stock)
        return io.NodeOutput(*encode_context(model, vae, image, mask, (grow, feather), kv_settings(stock), zoom))


class LazyContextApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyContextApply",
            "Lazy Context Apply",
            description="Makes KSampler, SamplerCustomAdvanced and every other sampler lazy: give them the MODEL from "
            "here and the LATENT of Lazy Context Encode.",
            aliases=["inpaint", "lazy ksampler", "make lazy"],
            inputs=[
                io.Model.Input("model", tooltip="The model that made the context."),
                LazyContextIO.Input("context", tooltip="From Lazy Context Encode."),
            ],
            outputs=[io.Model.Output("MODEL", tooltip="For any sampler or guider.")],
        )

    @classmethod
    def execute(cls, model: Any, context: AnyContext) -> io.NodeOutput:
        return io.NodeOutput(attach(model, context))


class LazyContextView(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyContextView",
            "Lazy Context View",
            description="Shows any picture of the canvas's size as the model sees the canvas: zoomed in, or filled up "
            "to whole tokens. For what is given to the model beside the context: inpainting conditioning, ControlNet "
            "hints, reference images.",
            aliases=["crop", "zoom", "inpaint crop", "control hint"],
            inputs=[
                LazyContextIO.Input("context", tooltip="From Lazy Context Encode."),
                io.Image.Input("image", tooltip="The canvas, or another picture of its size."),
            ],
            outputs=[
                io.Image.Output("IMAGE", tooltip="What the model sees of it."),
                io.Mask.Output("MASK", tooltip="The hole, likewise."),
            ],
        )

    @classmethod
    def execute(cls, context: AnyContext, image: Tensor) -> io.NodeOutput:
        return io.NodeOutput(as_seen(context, image, "image"), context.mask[:, 0].float())


class LazyContextInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyContextInfo",
            "Lazy Context Info",
            description="Says what a context is made of and what a sampling step on it costs.",
            aliases=["cost", "mask size", "cache size"],
            inputs=[LazyContextIO.Input("context", tooltip="From Lazy Context Encode.")],
            outputs=[io.String.Output("text", tooltip="What the node shows.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, context: AnyContext) -> io.NodeOutput:
        text = context_text(context)
        return io.NodeOutput(text, ui=ui.PreviewText(text))  # shown by web/js/context-info.js
