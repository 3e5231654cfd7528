"""Stock transformers of the host with next to no width and random weights, one of each architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "context_in_dim": 24, "hidden_size": 32, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "qkv_bias": True,
    "vec_in_dim": 12, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1,
    "multiple_of": 8, "qk_norm": True, "cap_feat_dim": 24, "axes_dims": [4, 6, 6], "axes_lens": [300, 64, 64],
}  # fmt: skip

# name: class of the host's configuration, sizes of the network, width of the text, of a pooled text
TINY: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "flux": ("Flux", FLUX, 24, 12),
    "flux-fill": ("FluxInpaint", {**FLUX, "in_channels": 96}, 24, 12),
    "flux-schnell": ("FluxSchnell", {**FLUX, "guidance_embed": False}, 24, 12),
    "chroma": (
        "Chroma",
        {**FLUX, "in_channels": 64, "out_channels": 64, "in_dim": 64, "hidden_dim": 32, "out_dim": 32, "n_layers": 1},
        24,
        0,
    ),
    "sd3": (
        "SD3",
        {
            "in_channels": 16, "patch_size": 2, "depth": 2, "num_blocks": 3, "input_size": None, "adm_in_channels": 12,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128},
            },
            "num_patches": 400, "pos_embed_max_size": 20, "pos_embed_scaling_factor": None, "qk_norm": "rms",
            "x_block_self_attn_layers": [0, 1],
        },
        24,
        12,
    ),
    "qwen-image": (
        "QwenImage",
        {
            "in_channels": 64, "out_channels": 16, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
            "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6),
        },
        24,
        0,
    ),
    "lumina2": ("Lumina2", LUMINA, 24, 0),
    "z-image": (
        "Lumina2",
        {
            **LUMINA, "dim": 256, "axes_dims": [32, 48, 48], "n_kv_heads": 2, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
            "rope_theta": 256.0,
        },
        24,
        0,
    ),
    "auraflow": (
        "AuraFlow",
        {
            "in_channels": 4, "dim": 32, "n_layers": 4, "n_double_layers": 2, "n_heads": 2, "global_conddim": 32,
            "cond_seq_dim": 24, "max_seq": 400,
        },
        24,
        0,
    ),
    "wan": (
        "WAN21_T2V",
        {
            "model_type": "t2v", "dim": 32, "ffn_dim": 64, "freq_dim": 16, "text_dim": 24, "num_heads": 2,
            "num_layers": 3,
        },
        24,
        0,
    ),
    "pixart-alpha": ("PixArtAlpha", {"hidden_size": 48, "num_heads": 2, "depth": 3, "caption_channels": 24}, 24, 0),
    "pixart-sigma": (
        "PixArtSigma",
        {"hidden_size": 48, "num_heads": 2, "depth": 3, "caption_channels": 24, "micro_condition": False},
        24,
        0,
    ),
    "hunyuan-dit": (
        "HunyuanDiT",
        {
            "hidden_size": 64, "num_heads": 4, "depth": 4, "in_channels": 4, "text_states_dim": 24,
            "text_states_dim_t5": 32, "text_len": 8, "text_len_t5": 8,
        },
        24,
        0,
    ),
}  # fmt: skip


def accepted(kind: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes that this release of the host knows."""
    import comfy.ldm.chroma.model
    import comfy.ldm.flux.model

    modules = {"Flux": comfy.ldm.flux.model.FluxParams, "Chroma": comfy.ldm.chroma.model.ChromaParams}
    known = next((modules[name] for name in modules if kind.startswith(name)), None)
    return {key: value for key, value in sizes.items() if known is None or key in known.__dataclass_fields__}


def tiny(name: str, seed: int = 0) -> Any:
    """A MODEL, built by the host's configuration of the architecture."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    kind, sizes, *_ = TINY[name]
    unet = dict(sizes)
    if kind.startswith("PixArt"):
        unet |= {"input_size": 64, "in_channels": 4, "pred_sigma": True, "pe_interpolation": 1, "model_max_length": 8}
    config = getattr(comfy.supported_models, kind)(accepted(kind, unet))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.diffusion_model.parameters():
        spread = 0.3 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    for module in model.diffusion_model.modules():
        if "RMSNorm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            module.weight.data.add_(1)
    return ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


def prompt(name: str, tokens: int, seed: int = 0, **more: Any) -> list[list[Any]]:
    """A CONDITIONING for the architecture."""
    _, _, width, pooled = TINY[name]
    generator = torch.Generator().manual_seed(seed)
    told: dict[str, Any] = {"pooled_output": torch.randn(1, pooled, generator=generator) if pooled else None}
    if name == "hunyuan-dit":
        told |= {
            "conditioning_mt5xl": torch.randn(1, 8, 32, generator=generator),
            "attention_mask": torch.ones(1, tokens), "attention_mask_mt5xl": torch.ones(1, 8),
        }  # fmt: skip
    if name in ("lumina2", "z-image"):
        told["attention_mask"] = torch.ones(1, tokens, dtype=torch.int64)
    return [[torch.randn(1, tokens, width, generator=generator), told | more]]


def latent(model: Any, height: int = 20, width: int = 20, rows: int = 1, seed: int = 0) -> Tensor:
    """A canvas latent."""
    shape = model.model.latent_format
    generator = torch.Generator().manual_seed(seed)
    frames = (1,) if shape.latent_dimensions == 3 else ()
    return torch.randn(rows, shape.latent_channels, *frames, height, width, generator=generator)
