"""The transformers that `kv_context.py` measures, and the arithmetic of their calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """An architecture at its published size."""

    name: str
    kind: str  # class of the host's configuration
    sizes: Mapping[str, Any]
    reduced: Mapping[str, Any]  # what differs on a CPU
    quick: Mapping[str, Any]  # and there with --quick
    text: int  # tokens of a prompt
    text_width: int
    pooled: int = 0  # width of a pooled text
    joint: bool = True  # whether text tokens pass through the blocks
    sampled: tuple[int, ...] = ()  # steps of whole samplings over which it is also measured, the most first
    limited: bool = False  # and one of them under a memory limit


PIXART = Shape(
    "PixArt-α XL/2", "PixArtAlpha",
    {
        "hidden_size": 1152, "num_heads": 16, "depth": 28, "caption_channels": 4096, "input_size": 128,
        "in_channels": 4, "pred_sigma": True, "pe_interpolation": 2, "model_max_length": 120,
    },
    {"depth": 4}, {"depth": 4}, text=120, text_width=4096, joint=False, sampled=(20,),
)  # fmt: skip
FLUX = Shape(
    "Flux", "Flux",
    {
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "context_in_dim": 4096, "hidden_size": 3072,
        "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
        "theta": 10000, "qkv_bias": True, "vec_in_dim": 768, "guidance_embed": True, "txt_ids_dims": [],
    },
    {"hidden_size": 1024, "num_heads": 8, "depth": 1, "depth_single_blocks": 2},
    {"hidden_size": 512, "num_heads": 4, "depth": 1, "depth_single_blocks": 2},
    text=256, text_width=4096, pooled=768, sampled=(20, 8, 4), limited=True,
)  # fmt: skip
SD35 = Shape(
    "SD3.5-medium", "SD3",
    {
        "in_channels": 16, "patch_size": 2, "depth": 24, "num_blocks": 24, "input_size": None, "qk_norm": "rms",
        "adm_in_channels": 2048, "num_patches": 384**2, "pos_embed_max_size": 384, "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": list(range(13)),
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536},
        },
    },
    {"num_blocks": 2, "x_block_self_attn_layers": [0]},
    {
        "depth": 12, "num_blocks": 2, "x_block_self_attn_layers": [0],
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 768}},
    },
    text=154, text_width=4096, pooled=2048,
)  # fmt: skip


SHAPES = (PIXART, FLUX, SD35)


def macs(shape: Shape, sizes: Mapping[str, Any], image: int, computed: int, computed_text: int) -> int:
    """Multiply-adds of a call's blocks that compute some tokens of `image` and of the text, and attend to all of them.

    With width d, per computed token: queries, keys, values and the projection behind them are 4·d², the MLP 8·d²; its
    query meets every key and its weights every value, d each. To this, PixArt adds cross-attention (2·d² per token and
    2·d per text token that it meets, and 2·d² for each text token's key and value); SD3.5 a second self-attention, of
    the image alone, in some blocks, while its last block makes queries, keys and values only of the text. Left out is
    what does not grow with the blocks (embeddings, output) or with the tokens (modulation).
    """
    d, text, tokens = width(shape, sizes), shape.text, computed + computed_text
    joint = 12 * d * d * tokens + 2 * d * tokens * (image + text)
    if shape.kind == "Flux":
        return (sizes["depth"] + sizes["depth_single_blocks"]) * joint
    alone = 2 * d * computed * image
    if shape.kind == "PixArtAlpha":
        cross = 2 * d * d * (computed + text) + 2 * d * computed * text
        return sizes["depth"] * (12 * d * d * computed + alone + cross)
    second = 4 * d * d * computed + alone
    last = 9 * d * d * computed_text  # what the last block leaves out
    return sizes["num_blocks"] * joint - last + len(sizes["x_block_self_attn_layers"]) * second


def width(shape: Shape, sizes: Mapping[str, Any]) -> int:
    return 64 * sizes["depth"] if shape.kind == "SD3" else sizes["hidden_size"]


def setting(shape: Shape, sizes: Mapping[str, Any]) -> str:
    """What was measured of a shape, and of what."""
    names = {"SD3": ["num_blocks"], "Flux": ["depth", "depth_single_blocks"]}.get(shape.kind, ["depth"])
    now, full = ((width(shape, each), "+".join(str(each[name]) for name in names)) for each in (sizes, shape.sizes))
    words = [f"{a} of {b}" if a != b else f"{a}" for a, b in zip(now, full, strict=True)]
    return f"{shape.name}: width {words[0]}, {words[1]} blocks, {shape.text} text tokens"
