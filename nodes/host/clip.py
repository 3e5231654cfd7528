"""A checkpoint's own small T5 as a CLIP socket, made of the host's T5 and sentencepiece tokenizer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.t5
from comfy import sd1_clip
from comfy.text_encoders.spiece_tokenizer import SPieceTokenizer
from torch import Tensor

from ...lazydiff.model.checkpoint import VOCABULARY, part
from ...lazydiff.model.config import ModelConfig
from ...lazydiff.model.text import unknown_words
from .progress import show

NAME = "lazy_t5"


def load_clip(config: ModelConfig, tensors: Mapping[str, Tensor]) -> comfy.sd.CLIP:
    """The text encoder of a checkpoint that has one."""
    weights = part(tensors, "text.t5.")
    width = config.network.text_width
    t5 = {
        "d_model": width, "d_kv": width // 4, "d_ff": 2 * width, "num_heads": 4, "num_layers": config.text_layers,
        "vocab_size": len(weights["shared.weight"]), "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True,
        "model_type": "t5",
    }  # fmt: skip

    class Encoder(sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None):
            super().__init__(
                device=device, dtype=dtype, textmodel_json_config=t5, model_class=comfy.text_encoders.t5.T5,
                special_tokens={"end": 1, "pad": 0}, model_options=model_options or {},
            )  # fmt: skip

    class Model(sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None):
            super().__init__(device, dtype, model_options or {}, name=NAME, clip_model=Encoder)

    class Pieces(sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None):
            super().__init__(
                tokenizer_data[VOCABULARY], embedding_directory=embedding_directory, embedding_size=width,
                embedding_key=NAME, tokenizer_class=SPieceTokenizer, has_start_token=False, pad_with_end=False,
                pad_to_max_length=False, min_length=1, max_length=99999999, tokenizer_data=tokenizer_data,
            )  # fmt: skip

    class Tokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None):
            super().__init__(embedding_directory, tokenizer_data, name=NAME, tokenizer=Pieces)

        def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> Any:
            if unknown := unknown_words(text, config.words):
                show(f"words that this model does not know: {', '.join(unknown)}")
            return super().tokenize_with_weights(text, *args, **kwargs)

    target = comfy.supported_models_base.ClipTarget(Tokenizer, Model)
    size = sum(tensor.numel() for tensor in weights.values())
    data = {VOCABULARY: tensors[VOCABULARY]}
    # Later releases load weights on construction, earlier ones afterwards.
    if "state_dict" in inspect.signature(comfy.sd.CLIP.__init__).parameters:
        return comfy.sd.CLIP(target, tokenizer_data=data, parameters=size, state_dict=[weights])
    clip = comfy.sd.CLIP(target, tokenizer_data=data, parameters=size)
    clip.load_sd(weights)
    return clip
