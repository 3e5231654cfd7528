"""The host's own tokenizers, with encoders beside them that answer with noise of the right shape."""

from __future__ import annotations

import importlib
from typing import Any

from .tiny_models import prompt

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
