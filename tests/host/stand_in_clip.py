"""The host's own tokenizers, with encoders beside them that answer with noise of the right shape; graphs of them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from .in_process import Pack
from .tiny_models import TinyVAE, prompt, tiny

# name of a tiny model: module and class of its tokenizer
TOKENIZERS = {
    "sd15": ("comfy.sd1_clip", "SD1Tokenizer"),
    "sdxl": ("comfy.sdxl_clip", "SDXLTokenizer"),
    "sd3": ("comfy.text_encoders.sd3_clip", "SD3Tokenizer"),
    "flux": ("comfy.text_encoders.flux", "FluxTokenizer"),
    "pixart-sigma": ("comfy.text_encoders.pixart_t5", "PixArtTokenizer"),
    "qwen-image": ("comfy.text_encoders.qwen_image", "QwenImageTokenizer"),
}
TEMPLATE = 34  # tokens that Qwen-Image's encoder cuts off before a prompt


class StandInCLIP:
    def __init__(self, name: str):
        self.name = name
        module, kind = TOKENIZERS[name]
        self.tokenizer = getattr(importlib.import_module(module), kind)()

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **kwargs)

    def stream(self, tokens: dict[str, Any]) -> list[Any]:
        """The tokens that the model's text is made of, in its order."""
        flat = {key: [token for chunk in chunks for token in chunk] for key, chunks in tokens.items()}
        if self.name == "sd3":
            return flat["l"] + flat["t5xxl"]
        if self.name == "qwen-image":
            return flat["qwen25_7b"][TEMPLATE:]
        return flat["t5xxl"] if "t5xxl" in flat else flat["l"]

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[list[Any]]:
        numbers = [int(token[0]) for token in self.stream(tokens)]
        return prompt(self.name, len(numbers), sum(numbers))

    def conditioning(self, text: str) -> list[list[Any]]:
        return self.encode_from_tokens_scheduled(self.tokenize(text))


SETTINGS = {
    "words": "", "reference": "automatic", "object_threshold": 0.9, "background_threshold": 0.6, "mask_threshold": 0.2,
}  # fmt: skip
SAMPLING = {"seed": 3, "seeds": 2, "steps": 4, "strength": 0.5, "cfg": 3.0}


class Graph:
    """A tiny model with the host's own tokenizer for its kind, and a picture."""

    def __init__(self, pack: Pack, name: str):
        self.call, self.name = pack.call, name
        self.model, self.clip = tiny(name), StandInCLIP(name)
        form = self.model.model.latent_format
        self.vae = TinyVAE(form.latent_channels, form.latent_dimensions == 3)
        self.image = torch.rand(1, 256, 320, 3, generator=torch.Generator().manual_seed(1))
        self.positive, self.negative = self.clip.conditioning("a red cat"), self.clip.conditioning("")

    def mask(self, text: str = "a red cat on a mat", model: Any = None, **changed: Any) -> tuple[Tensor, Tensor]:
        given = {"image": self.image, "prompt": text, **SETTINGS, **SAMPLING, **changed}
        return self.call("AttentionMask", model or self.model, self.clip, self.vae, **given)

    def instant(self, text: str = "a red cat on a mat", model: Any = None, **changed: Any) -> tuple[Any, Any]:
        return self.call("InstantMask", model or self.model, self.clip, text, **{**SETTINGS, **changed})

    def sample(self, model: Any, canvas: dict[str, Tensor], denoise: float = 0.6, positive: Any = None) -> Tensor:
        args = model, 1, 4, 3.0, "euler", "normal", positive or self.positive, self.negative, canvas, denoise
        return self.call("KSampler", *args)[0]["samples"]

    def difference(
        self, canvas: Tensor, seed: int = 1, model: Any = None, source: Any = None, target: Any = None, first: int = 2,
        denoise: float = 1.0, cfg: float = 3.0, sampler: str = "euler", **more: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        given = {
            "source": source or self.positive, "target": target or self.clip.conditioning("a red dog"),
            "negative": self.negative, "latent": {"samples": canvas}, "seed": seed, "steps": 4, "first": first,
            "cfg": cfg, "sampler": sampler, "scheduler": "normal", "denoise": denoise, **more,
        }  # fmt: skip
        return self.call("PromptDifferenceMask", model or self.model, **given)
