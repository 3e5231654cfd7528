"""Blending."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..lazydiff.core import masks
from ..lazydiff.core.poisson import poisson_blend
from .types import CATEGORY


class PoissonBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PoissonBlend",
            display_name="Poisson Blend",
            category=CATEGORY,
            description="Puts a part of one picture into another without a seam. Outside the mask every pixel stays "
            "exactly as it was. Works on any two pictures of one size.",
            inputs=[
                io.Image.Input("destination", tooltip="The picture that stays."),
                io.Image.Input("source", tooltip="The picture that fills the mask; its colours adapt to the edge."),
                io.Mask.Input("mask", tooltip="Where, of the pictures' size; above 0.5 counts."),
                io.Combo.Input(
                    "gradients",
                    options=["source", "mixed"],
                    default="source",
                    tooltip="source: the source's detail. mixed: the stronger of both, so that texture shows through.",
                ),
                io.Int.Input("grow", default=0, min=-64, max=64, tooltip="Widen or narrow the mask, in pixels."),
            ],
            outputs=[io.Image.Output("IMAGE", tooltip="The destination with the source in it.")],
        )

    @classmethod
    def execute(cls, destination: Tensor, source: Tensor, mask: Tensor, gradients: str, grow: int) -> io.NodeOutput:
        mask = masks.grow(masks.binarise(mask.reshape(-1, 1, *mask.shape[-2:])), grow)
        rows = max(len(destination), len(source), len(mask))
        sizes = {"destination": len(destination), "source": len(source), "mask": len(mask)}
        if set(sizes.values()) - {1, rows}:
            counts = ", ".join(f"{name} {count}" for name, count in sizes.items())
            raise ValueError(f"batches of different length ({counts}): give as many of each, or one")
        batches = destination.movedim(-1, 1), source.movedim(-1, 1), mask.to(destination)
        destination, source, mask = (batch.expand(rows, -1, -1, -1) for batch in batches)
        # Clipped inside the mask only: a destination may have values beyond 0…1, and they are not ours to change.
        blended = poisson_blend(destination, source[:, : destination.shape[1]], mask, gradients)  # type: ignore[arg-type]
        blended = torch.where(mask > 0, blended.clamp(0, 1), destination)
        return io.NodeOutput(blended.movedim(1, -1))
