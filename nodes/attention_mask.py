"""Masks of what a prompt speaks of, found by the model itself."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .host.mask_search import SearchSettings, attach_instant_mask, find_attention_masks
from .inputs import MODELS, cfg_input, node_schema, search_inputs, seed_input, steps_input


class AttentionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "AttentionMask",
            "Attention Mask",
            description="A mask of what a prompt speaks of, without painting: the picture is made half noisy and "
            "denoised again, and where the model looks for the prompt's words meanwhile is where they are.",
            aliases=["automatic mask", "text to mask", "segment", "instdiffedit", "find object"],
            inputs=[
                io.Model.Input("model", tooltip=MODELS),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The picture; of a batch, each gets its own mask."),
                io.String.Input(
                    "prompt", multiline=True,
                    tooltip="What the mask should cover, as you would describe the picture you want.",
                ),
                *search_inputs(),
                seed_input("Of the noise; the mask changes a little with it."),
                io.Int.Input("seeds", default=3, min=1, max=16, tooltip="Noises that the mask is averaged over."),
                steps_input("Of which the last strength × steps run.", default=50),
                io.Float.Input(
                    "strength", default=0.5, min=0.05, max=1.0, step=0.05,
                    tooltip="How noisy the picture is made: less sees the picture, more sees the prompt.",
                ),
                cfg_input("How strongly the prompt is followed. 1 for Flux, 2 for this pack's model.", 7.5),
                io.Conditioning.Input("negative", optional=True, tooltip="Not connected: the empty prompt."),
                io.Boolean.Input(
                    "evidence", default=False, optional=True,
                    tooltip="Weigh the heat map by how much better the prompt explains the picture than the negative "
                    "prompt: tells the named object from others, where the model's attention does not.",
                ),
            ],
            outputs=[
                io.Mask.Output("MASK", tooltip="Of the image's size; for Lazy Context Encode."),
                io.Image.Output("IMAGE", tooltip="The picture with a heat map of where the words were looked for."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, image: Tensor, prompt: str, words: str, reference: str,
        object_threshold: float, background_threshold: float, mask_threshold: float, negative: Any = None,
        evidence: bool = False, **partial: Any,
    ) -> io.NodeOutput:  # fmt: skip
        thresholds = object_threshold, background_threshold, mask_threshold
        settings = SearchSettings(words, reference, thresholds, evidence)
        return io.NodeOutput(*find_attention_masks((model, clip, vae), image, prompt, settings, negative, **partial))


class InstantMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "InstantMask",
            "Instant Mask",
            description="Lets any sampler find its mask while it runs: from the second step on, what the prompt's "
            "words are not looked for stays as it is in the latent. For KSampler with a denoise below 1.",
            aliases=["automatic mask", "instdiffedit", "edit without mask"],
            inputs=[
                io.Model.Input("model", tooltip=MODELS),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.String.Input("prompt", multiline=True, tooltip="What to make of the picture."),
                *search_inputs(),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="For a sampler."),
                io.Conditioning.Output("CONDITIONING", tooltip="The prompt; the sampler's positive."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, prompt: str, words: str, reference: str, object_threshold: float,
        background_threshold: float, mask_threshold: float,
    ) -> io.NodeOutput:  # fmt: skip
        thresholds = object_threshold, background_threshold, mask_threshold
        settings = SearchSettings(words, reference, thresholds)
        return io.NodeOutput(*attach_instant_mask(model, clip, prompt, settings))
