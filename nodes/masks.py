"""Masks before anything is encoded, and canvases made larger."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .host.masks import clean_mask, extend
from .inputs import node_schema

SIDES = ("left", "top", "right", "bottom")


class LazyMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyMask",
            "Lazy Mask",
            description="Makes a painted or found mask one that can be relied on: every pixel is hole or not, and "
            "islands that were left out inside the hole are part of it.",
            aliases=["fill holes", "mask threshold", "binarize mask", "clean mask"],
            inputs=[
                io.Mask.Input("mask", tooltip="A mask of any softness."),
                io.Float.Input(
                    "threshold", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="What is above this is hole. 0: everything that was touched at all.",
                ),
                io.Boolean.Input(
                    "fill_islands", default=True, tooltip="Visible islands that the hole encloses become hole."
                ),
            ],
            outputs=[io.Mask.Output("MASK", tooltip="For Lazy Context Encode and Poisson Blend alike.")],
        )

    @classmethod
    def execute(cls, mask: Tensor, threshold: float, fill_islands: bool) -> io.NodeOutput:
        return io.NodeOutput(clean_mask(mask, threshold, fill_islands))


class LazyOutpaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyOutpaint",
            "Lazy Outpaint",
            description="Makes a canvas larger: what is added on each side is hole, filled with the nearest colours "
            "for the VAE. Both outputs go to Lazy Context Encode; the picture is Poisson Blend's destination.",
            aliases=["outpaint", "extend", "uncrop", "pad image", "expand canvas"],
            inputs=[
                io.Image.Input("image", tooltip="The picture; every pixel of it that is not in the mask stays."),
                *(
                    io.Int.Input(side, default=0, min=0, max=8192, step=8, tooltip=f"Pixels to add, {side}.")
                    for side in SIDES
                ),
                io.Int.Input(
                    "overlap", default=8, min=0, max=512,
                    tooltip="So many pixels of the picture along each new side are generated too, for a soft passage.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="What else is to be generated, of the picture's size."),
            ],
            outputs=[
                io.Image.Output("IMAGE", tooltip="The larger canvas."),
                io.Mask.Output("MASK", tooltip="What is to be generated on it."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image: Tensor, left: int, top: int, right: int, bottom: int, overlap: int, mask: Tensor | None = None
    ) -> io.NodeOutput:
        return io.NodeOutput(*extend(image, mask, (left, top, right, bottom), overlap))
