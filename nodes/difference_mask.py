"""Masks of what changes in a picture when its prompt does."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.prompt_difference import PromptPair, find_difference_mask
from .host.sampling import SamplerSettings
from .host.trajectory import FIRST, Recorder
from .inputs import cfg_input, denoise_input, node_schema, sampler_inputs, seed_input, steps_input

AS_PICTURE = "As of the picture's sampler."


class PromptDifferenceMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "PromptDifferenceMask",
            "Prompt Difference Mask",
            description="A mask of what changes when a picture's prompt does: the first steps of both prompts from the "
            "same noise, compared. With Lazy Context Encode and Lazy Sample behind it, only what the changed words "
            "touch is computed.",
            aliases=["automatic mask", "diffedit", "fisedit", "mask from prompts"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model of the picture. With Record Latents before it and before the picture's sampler, "
                    "that sampler's steps are used instead of being computed again.",
                ),
                io.Conditioning.Input("source", tooltip="The prompt as it was."),
                io.Conditioning.Input("target", tooltip="The prompt as it is to be."),
                io.Conditioning.Input("negative", tooltip="What to stay away from, with both; not used at cfg 1."),
                io.Latent.Input(
                    "latent",
                    tooltip="Of a picture made in this graph: the sampler's result, or its empty latent. Of any other "
                    "picture: VAE Encode's, with a denoise below 1.",
                ),
                seed_input("That of the picture, if it was made in this graph."),
                steps_input("Of the whole sampling.", default=50, least=2),
                io.Int.Input(
                    "first", default=10, min=1, max=FIRST,
                    tooltip="How many of its first steps are compared; the others are not computed.",
                ),
                cfg_input(f"{AS_PICTURE} 1 for Flux, 2 for this pack's model.", 7.5),
                *sampler_inputs("dpmpp_2m", "normal", (AS_PICTURE, AS_PICTURE)),
                denoise_input("1 for a picture that was made in this graph; about 0.8 for any other.", least=0.05),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="Of both prompts. With their texts, the words that did not change look where they looked "
                    "before, so that only the changed ones make a difference. For Stable Diffusion, SDXL, PixArt and "
                    "this pack's models.",
                ),
                *(
                    io.String.Input(
                        f"{name}_text", default="", multiline=True, optional=True,
                        tooltip=f"With clip: what {name} was made of. Not needed without.",
                    )
                    for name in ("source", "target")
                ),
            ],
            outputs=[
                io.Mask.Output("MASK", tooltip="Of the picture's size; for Lazy Context Encode."),
                io.Image.Output("IMAGE", tooltip="Heat map of where the prompts differ."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, source: Any, target: Any, negative: Any, latent: dict[str, Any], first: int, clip: Any = None,
        source_text: str = "", target_text: str = "", **sampler: Any,
    ) -> io.NodeOutput:  # fmt: skip
        prompts = PromptPair(source, target, negative, clip, (source_text, target_text))
        return io.NodeOutput(
            *find_difference_mask(model, prompts, latent["samples"], SamplerSettings(**sampler), first)
        )


class RecordLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "RecordLatents",
            "Record Latents",
            description="Remembers the steps of the samplers behind it, so that a Prompt Difference Mask of their "
            "pictures need not compute them again. Changes nothing.",
            aliases=["record steps", "fisedit"],
            inputs=[io.Model.Input("model", tooltip="Any model.")],
            outputs=[io.Model.Output("MODEL", tooltip="For the sampler, and for Prompt Difference Mask.")],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(Recorder().attach(model))
