"""Public models of next to no size with random weights, in the folders and files that people have them in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lazydiff.model.config import PRESETS, NetworkConfig
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.pixart_weights import Layout, to_pixart
from lazydiff.model.text import train_vocabulary

WORDS = (
    "a photograph of a red house on a green hill", "two blue birds in an old tree", "another yellow flower",
    "the sky above the sea", "background", "a brown dog runs", "white clouds", "a cup on the table",
)  # fmt: skip
TEXT_WIDTH = 16
# What fits these folders: PixArt's own layers, next to none of them.
NETWORK = replace(
    PRESETS["pixart-512"], canvas=64, width=24, heads=2, decoder_depth=2, encoder_depth=1, text_width=TEXT_WIDTH
)  # fmt: skip


def save_vae(folder: Path, **changes: Any) -> Path:
    """An `AutoencoderKL` whose cells are 8 px, as diffusers saves it; changes: of its configuration"""
    from diffusers import AutoencoderKL

    sizes: dict[str, Any] = dict(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215, sample_size=64,
    )  # fmt: skip
    AutoencoderKL(**(sizes | changes)).save_pretrained(folder)
    return folder


def save_text_encoder(folder: Path) -> Path:
    """A pipeline's folder with a T5 encoder in text_encoder/ and a tokenizer in tokenizer/."""
    from transformers import T5Config, T5EncoderModel

    t5 = T5Config(
        vocab_size=128, d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(t5).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(train_vocabulary(WORDS, 100))
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 120}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def save_pixart(path: Path, layout: Layout = "original", network: NetworkConfig = NETWORK) -> Path:
    """A stock PixArt, which lacks the layer that is LazyDiffusion's: a file, or diffusers' folder with a transformer/
    of the same file in it, for a path without a suffix."""
    decoder = LazyDecoder(network)
    with torch.no_grad():
        for parameter in decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    state = {name: value for name, value in decoder.state_dict().items() if not name.startswith("ctx_fuse.")}
    if not path.suffix:
        (path / "transformer").mkdir(parents=True)
        config = {"_class_name": "PixArtTransformer2DModel", "num_layers": network.decoder_depth}
        (path / "transformer" / "config.json").write_text(json.dumps(config))
    file = path if path.suffix else path / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.contiguous() for name, value in to_pixart(state, layout).items()}, file)
    return file


def save_clip(folder: Path) -> Path:
    """A CLIP model with its tokenizer, which knows letters alone, and its image processor."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    sizes: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8
    )  # fmt: skip
    end = len(words) - 1
    text = CLIPTextConfig(vocab_size=end + 1, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end, **sizes)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    both = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(both).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


class PictureFeatures(torch.nn.Module):
    """Called as the Inception of 2015 is in its TorchScript file: bytes of any size, features by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * 16, 3)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(img.float() / 255, [4, 4])
        features = self.layer(small.flatten(1))
        return features if return_features else features.softmax(1)[:, :2]


def save_inception(path: Path) -> Path:
    torch.jit.script(PictureFeatures()).save(str(path))
    return path
