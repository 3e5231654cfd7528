"""Masks of what changes in a picture when its prompt does."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..lazydiff.auto_mask.attention_mask import resize
from ..lazydiff.auto_mask.difference_mask import DifferenceMap, difference_mask
from .attention_mask import heat_picture
from .context import show
from .host.kv import downscale
from .host.mask_search import finer
from .host.stabiliser import StabilisedPrompts
from .host.trajectory import FIRST, Recorder, Start, follow, recorder_of
from .types import CATEGORY


class PromptDifferenceMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PromptDifferenceMask",
            display_name="Prompt Difference Mask",
            category=CATEGORY,
            description="A mask of what changes when a picture's prompt does: the first steps of both prompts from the "
            "same noise, compared. With Lazy Context Encode and Lazy Sample behind it, only what the changed words "
            "touch is computed.",
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
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="That of the picture, if it was made in this graph.",
                ),
                io.Int.Input("steps", default=50, min=2, max=1000, tooltip="Of the whole sampling."),
                io.Int.Input(
                    "first",
                    default=10,
                    min=1,
                    max=FIRST,
                    tooltip="How many of its first steps are compared; the others are not computed.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    round=0.01,
                    tooltip="As of the picture's sampler. 1 for Flux and this pack's small model.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="dpmpp_2m",
                    tooltip="As of the picture's sampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="normal",
                    tooltip="As of the picture's sampler.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.05,
                    max=1.0,
                    step=0.01,
                    tooltip="1 for a picture that was made in this graph; about 0.8 for any other.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Of both prompts. With their texts, the words that did not change look where they looked "
                    "before, so that only the changed ones make a difference. For Stable Diffusion, SDXL, PixArt and "
                    "this pack's models.",
                ),
                *(
                    io.String.Input(
                        f"{name}_text",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip=f"With clip: what {name} was made of. Not needed without.",
                    )
                    for name in ("source", "target")
                ),
            ],
            outputs=[
                io.Mask.Output("MASK", tooltip="Of the picture's size; for Lazy Context Encode."),
                io.Image.Output("IMAGE", tooltip="Heat map of where the prompts differ."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, source: Any, target: Any, negative: Any, latent: dict[str, Any], seed: int, steps: int,
        first: int, cfg: float, sampler: str, scheduler: str, denoise: float, clip: Any = None, source_text: str = "",
        target_text: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        stabilised, texts = None, (source_text.strip(), target_text.strip())
        if clip is not None or any(texts):
            if clip is None or not all(texts):
                raise ValueError("the stabiliser needs clip, source_text and target_text: give all of them, or none")
            stabilised = StabilisedPrompts(model, clip, source, target, (source_text, target_text))
            if not stabilised.shared:
                show("The two prompts have no word in common: there is nothing to stabilise.")
        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        recorder = recorder_of(model)
        recorded = recorder.find(samples) if recorder else None
        reused = recorded is not None and len(recorded.steps) >= first
        if reused:
            start = recorded.start
        else:
            sigmas = comfy.samplers.KSampler(model, steps, "cpu", sampler, scheduler, denoise).sigmas
            first = min(first, len(sigmas) - 2)
            if denoise >= 1:
                samples = torch.zeros_like(samples)
            noise = comfy.sample.prepare_noise(samples, seed)
            start = Start(noise, samples, comfy.samplers.sampler_object(sampler), sigmas, seed)
        if stabilised is not None:
            before, after = stabilised.follow(start, cfg, negative, first)
        else:
            before = recorded.steps[:first] if reused else follow(model, start, cfg, source, negative, first)
            after = follow(model, start, cfg, target, negative, first)
        found = DifferenceMap()
        for edited, original in zip(after, before, strict=True):
            found.add(edited, original)
        if not found.differs:
            show("The two prompts make the same picture: the mask is empty. Change the target prompt.")
        heat = found.heat()[None].cpu()
        height, width = heat.shape[1:]
        mask = difference_mask(resize(heat, finer(height, width))[0])
        size = height * downscale(model), width * downscale(model)
        return io.NodeOutput(F.interpolate(mask[None, None], size)[0], heat_picture(resize(heat, size)))


class RecordLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RecordLatents",
            display_name="Record Latents",
            category=CATEGORY,
            description="Remembers the steps of the samplers behind it, so that a Prompt Difference Mask of their "
            "pictures need not compute them again. Changes nothing.",
            inputs=[io.Model.Input("model", tooltip="Any model.")],
            outputs=[io.Model.Output("MODEL", tooltip="For the sampler, and for Prompt Difference Mask.")],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(Recorder().attach(model))
