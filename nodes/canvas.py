"""Edits in a chain, on a canvas that stays in latents."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..lazydiff.pipeline.canvas import Canvas
from ..lazydiff.pipeline.decode import Blend
from .host.encode import encode_from_canvas
from .host.lazy_vae import edit_with, open_with
from .host.progress import show
from .inputs import blend_input, edge_inputs, kv_settings, node_schema, recording_inputs, stock_inputs
from .types import AnyContext, LazyCanvasIO, LazyContextIO


class LazyCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyCanvas",
            "Lazy Canvas",
            description="Opens a picture for any number of edits, one after the other: it is encoded once, here, and "
            "stays in latents from edit to edit.",
            aliases=["edit chain", "progressive edit", "canvas"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The picture, of any size."),
            ],
            outputs=[LazyCanvasIO.Output("LAZY_CANVAS", tooltip="For Lazy Canvas Context and Lazy Canvas Edit.")],
        )

    @classmethod
    def execute(cls, vae: Any, image: Tensor) -> io.NodeOutput:
        return io.NodeOutput(open_with(vae, image))


class LazyCanvasContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyCanvasContext",
            "Lazy Canvas Context",
            description="Lazy Context Encode for a Lazy Canvas: the next hole. The canvas is not encoded again.",
            aliases=["inpaint", "edit chain", "next edit"],
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
                *recording_inputs(),
            ],
            outputs=[
                LazyContextIO.Output("LAZY_CONTEXT", tooltip="For LazySample, and then for Lazy Canvas Edit."),
                io.Latent.Output("LATENT", tooltip="The canvas with its noise mask, for stock samplers."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, canvas: Canvas, mask: Tensor, grow: int, feather: int, **stock: Any
    ) -> io.NodeOutput:
        return io.NodeOutput(*encode_from_canvas(model, canvas, mask, (grow, feather), kv_settings(stock)))


class LazyCanvasEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyCanvasEdit",
            "Lazy Canvas Edit",
            description="Puts what was sampled into the canvas: decodes what has changed, blends it in without a seam, "
            "and keeps the sampled latents as they are for the next edit. Outside the hole every pixel and every "
            "latent stays exactly as it was. Variations of one hole give as many canvases; a batch of holes is filled "
            "on one canvas.",
            aliases=["edit chain", "composite", "seamless"],
            inputs=[
                LazyCanvasIO.Input("canvas", tooltip="The canvas that the context was made of."),
                io.Latent.Input("samples", tooltip="From LazySample, or any sampler that had the context's LATENT."),
                LazyContextIO.Input("context", tooltip="From Lazy Canvas Context: it knows where the hole is."),
                blend_input(),
            ],
            outputs=[
                LazyCanvasIO.Output("LAZY_CANVAS", tooltip="For the next edit."),
                io.Image.Output("IMAGE", tooltip="The picture as it is now."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, canvas: Canvas, samples: dict[str, Tensor], context: AnyContext, blend: Blend) -> io.NodeOutput:
        canvas, text = edit_with(canvas, samples["samples"], context, blend)
        show(text)
        return io.NodeOutput(canvas, canvas.image.movedim(1, -1))
