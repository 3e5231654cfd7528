"""Masks of what a prompt speaks of, found by the model itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..lazydiff.auto_mask.attention_mask import Thresholds, resize
from .host.contexts import encode_each
from .host.kv import token_size
from .host.mask_search import MaskSearch
from .host.model import LazyModel
from .host.words import read_prompt
from .types import CATEGORY

REFERENCES = ["automatic", "start", "sink", "difference"]
HEAT = torch.tensor([1.0, 0.25, 0.1])  # colour of a heat map where it is hottest


class AttentionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AttentionMask",
            display_name="Attention Mask",
            category=CATEGORY,
            description="A mask of what a prompt speaks of, without painting: the picture is made half noisy and "
            "denoised again, and where the model looks for the prompt's words meanwhile is where they are.",
            inputs=[
                io.Model.Input("model", tooltip="SD 1.5, SDXL, PixArt, Flux, SD3, Qwen-Image … or one of this pack's."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="The picture; of a batch, each gets its own mask."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="What the mask should cover, as you would describe the picture you want.",
                ),
                *search_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise; the mask changes a little with it.",
                ),
                io.Int.Input("seeds", default=3, min=1, max=16, tooltip="Noises that the mask is averaged over."),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Of which the last strength × steps run."),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="How noisy the picture is made: less sees the picture, more sees the prompt.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strongly the prompt is followed meanwhile. 1 for Flux and this pack's small model.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="Not connected: the empty prompt."),
                io.Boolean.Input(
                    "evidence",
                    default=False,
                    optional=True,
                    tooltip="Weigh the heat map by how much better the prompt explains the picture than the negative "
                    "prompt: tells the named object from others, where the model's attention does not.",
                ),
            ],
            outputs=[
                io.Mask.Output("MASK", tooltip="Of the image's size; for Lazy Context Encode."),
                io.Image.Output("IMAGE", tooltip="The picture with a heat map of where the words were looked for."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, image: Tensor, prompt: str, words: str, reference: str,
        object_threshold: float, background_threshold: float, mask_threshold: float, seed: int, seeds: int, steps: int,
        strength: float, cfg: float, negative: Any = None, evidence: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        read = read_prompt(clip, prompt)
        if negative is None:
            negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        thresholds = Thresholds(object_threshold, background_threshold, mask_threshold)
        search = MaskSearch(model, read, words, reference, thresholds, evidence)
        heats = []
        for latent in latents_of(model, vae, image):
            heat = search.find(model, latent, negative, seed, seeds, steps, strength, cfg)
            heats.append(resize(heat[None], tuple(image.shape[1:3])))
        heat = torch.cat(heats)
        return io.NodeOutput((heat > mask_threshold).float(), heat_picture(heat, image[..., :3]))


class InstantMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InstantMask",
            display_name="Instant Mask",
            category=CATEGORY,
            description="Lets any sampler find its mask while it runs: from the second step on, what the prompt's "
            "words are not looked for stays as it is in the latent. For KSampler with a denoise below 1.",
            inputs=[
                io.Model.Input("model", tooltip="SD 1.5, SDXL, PixArt, Flux, SD3, Qwen-Image … or one of this pack's."),
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
        read = read_prompt(clip, prompt)
        thresholds = Thresholds(object_threshold, background_threshold, mask_threshold)
        search = MaskSearch(model, read, words, reference, thresholds)
        return io.NodeOutput(search.attach_instantly(model), read.conditioning)


def search_inputs() -> list[Any]:
    """How words are told apart."""
    return [
        io.String.Input(
            "words",
            default="",
            tooltip="Words of the prompt to point at, separated by commas. Empty: the model finds out which of them "
            "are the object.",
        ),
        io.Combo.Input(
            "reference",
            options=REFERENCES,
            default="automatic",
            tooltip="What the object's words are recognised by: the start token (CLIP), the token that draws attention "
            "anyway (T5), or where guidance changes most.",
        ),
        *(
            io.Float.Input(name, default=default, min=-1.0, max=1.0, step=0.01, tooltip=tooltip)
            for name, default, tooltip in (
                ("object_threshold", 0.9, "Words this similar to the object's are the object too."),
                ("background_threshold", 0.6, "Words no more similar than this are background, and taken away."),
                ("mask_threshold", 0.2, "Where the heat map is above this is masked: lower, larger."),
            )
        ),
    ]


def latents_of(model: Any, vae: Any, image: Tensor) -> list[Tensor]:
    """Each image [B, H, W, 3] as a latent [1, C, ..., h, w]; sides are scaled to whole tokens.

    Errors: ValueError for images that are no numbers.
    """
    if not torch.isfinite(image).all():
        raise ValueError("the image has values that are not numbers: the step before failed")
    token = model.model.network.token if isinstance(model.model, LazyModel) else token_size(model)
    size = [max(round(side / token), 1) * token for side in image.shape[1:3]]
    pixels = image[..., :3].movedim(-1, 1)
    if list(image.shape[1:3]) != size:
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return list(encode_each(vae, pixels.movedim(1, -1)).split(1))


def heat_picture(heat: Tensor, image: Tensor | None = None) -> Tensor:
    """Heat maps [B, H, W] in 0…1 as pictures [B, H, W, 3], over images or over black."""
    image = heat.new_zeros(*heat.shape, 3) if image is None else image.to(heat)
    opacity = heat[..., None] * 0.8
    return image * (1 - opacity) + HEAT.to(heat) * opacity
