"""Blending."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .host.blend import blend_pictures
from .inputs import colour_input, node_schema
from .types import AnyContext, LazyContextIO


class PoissonBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "PoissonBlend",
            "Poisson Blend",
            description="Puts a part of one picture into another without a seam. Outside the mask every pixel stays "
            "exactly as it was. Works on any two pictures of one size.",
            aliases=["seamless", "seamless clone", "blend", "composite", "gradient domain", "paste", "invisible seam"],
            inputs=[
                io.Image.Input("destination", tooltip="The picture that stays."),
                io.Image.Input("source", tooltip="The picture that fills the mask; its colours adapt to the edge."),
                io.Mask.Input("mask", tooltip="Where, of the pictures' size; above 0.5 counts."),
                io.Combo.Input(
                    "gradients", options=["source", "mixed"], default="source",
                    tooltip="source: the source's detail. mixed: the stronger of both, so that texture shows through.",
                ),
                io.Int.Input("grow", default=0, min=-64, max=64, tooltip="Widen or narrow the mask, in pixels."),
                colour_input(),
                LazyContextIO.Input(
                    "context", optional=True,
                    tooltip="With a source from VAE Decode, which is of the model's size: says where it belongs.",
                ),
            ],
            outputs=[io.Image.Output("IMAGE", tooltip="The destination with the source in it.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, destination: Tensor, source: Tensor, mask: Tensor, gradients: str, grow: int, match_colours: bool = False,
        context: AnyContext | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        return io.NodeOutput(blend_pictures(destination, source, mask, gradients, grow, match_colours, context))
