"""Sampling."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .host.sampling import SamplerSettings, sample_context
from .inputs import denoise_input, node_schema, own_sampler_inputs, seed_input
from .types import AnyContext, LazyContextIO


class LazySample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazySample",
            "Lazy Sample",
            description="Generates the hole of a context; everything else stays as it is, bit by bit. Change the seed "
            "or the prompt as often as you like: the canvas is not encoded again.",
            aliases=["inpaint", "sampler", "variations", "ksampler lazy", "generative fill"],
            inputs=[
                io.Model.Input("model", tooltip="The model that made the context."),
                LazyContextIO.Input("context", tooltip="From Lazy Context Encode; one serves many samplers."),
                io.Conditioning.Input("positive", tooltip="What to put into the hole."),
                io.Conditioning.Input("negative", tooltip="What to stay away from; not used at cfg 1."),
                seed_input("The noise to begin with. It belongs to places of the canvas: another mask, same noise."),
                *own_sampler_inputs(),
                denoise_input("1 = from noise alone; less keeps more of the sketch, or of what lies under the mask."),
                io.Int.Input(
                    "variations", default=1, min=1, max=64, tooltip="Pictures to make: of seed, seed + 1, seed + 2 …"
                ),
                io.Image.Input(
                    "sketch", optional=True,
                    tooltip="Colours to start from in the hole, of the canvas's size; use denoise below 1.",
                ),
            ],
            outputs=[io.Latent.Output("LATENT", tooltip="For VAE Decode; then blend with Poisson Blend.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, context: AnyContext, positive: Any, negative: Any, seed: int, steps: int, cfg: float,
        sampler: str, scheduler: str, denoise: float, variations: int, sketch: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        settings = SamplerSettings(seed, steps, cfg, sampler, scheduler, denoise)
        return io.NodeOutput(sample_context(model, context, (positive, negative), settings, variations, sketch))
