"""Decoding."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .host.lazy_vae import decode_hole
from .host.progress import show
from .inputs import colour_input, node_schema
from .types import AnyContext, LazyContextIO

MODES = ["lazy", "exact (full)"]


class LazyVAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyVAEDecode",
            "Lazy VAE Decode",
            description="VAE Decode whose work follows the hole. With a context as hole, its canvas is decoded once, "
            "and then of every sample what differs from it and what lies around that. For the VAEs of Stable "
            "Diffusion, SDXL, SD3 and Flux; others decode everything. A canvas that was fitted to the model is given "
            "back at its own size. The node says what it did.",
            aliases=["decode part", "partial decode", "vae decode faster"],
            inputs=[
                io.Latent.Input("samples", tooltip="From a sampler."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.MultiType.Input(
                    "hole", types=[LazyContextIO, io.Mask], tooltip="Where it was sampled: the context, or its mask."
                ),
                io.Image.Input("canvas", tooltip="The picture that was edited; it stays outside the hole."),
                io.Combo.Input(
                    "mode", options=MODES, default=MODES[0],
                    tooltip="lazy: what has changed, from what is remembered. exact: always everything, as VAE Decode.",
                ),
                colour_input(),
            ],
            outputs=[
                io.Image.Output(
                    "IMAGE",
                    tooltip="The canvas with the decode in all squares of 8 px that the hole touches or is next to: "
                    "what Poisson Blend needs as source, with the same mask.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, samples: dict[str, Tensor], vae: Any, hole: Tensor | AnyContext, canvas: Tensor, mode: str,
        match_colours: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        image, text = decode_hole(vae, samples["samples"], hole, canvas, mode != MODES[0], match_colours)
        show(text)
        return io.NodeOutput(image)
