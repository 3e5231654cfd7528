"""Sizes of the host's networks with next to no width, one of each kind."""

from __future__ import annotations

from typing import Any

import torch

FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "context_in_dim": 24, "hidden_size": 32, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "qkv_bias": True,
    "vec_in_dim": 12, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1,
    "multiple_of": 8, "qk_norm": True, "cap_feat_dim": 24, "axes_dims": [4, 6, 6], "axes_lens": [300, 64, 64],
}  # fmt: skip
COSMOS = {
    "max_img_h": 40, "max_img_w": 40, "max_frames": 8, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 32, "num_blocks": 3, "num_heads": 2, "mlp_ratio": 2.0,
    "crossattn_emb_channels": 24, "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 8,
}  # fmt: skip
OMNIGEN = {
    "hidden_size": 64, "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 8,
    "axes_dim_rope": (4, 6, 6),
}  # fmt: skip
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "model_channels": 32, "context_dim": 24, "use_temporal_attention": False,
}  # fmt: skip

# name: class of the host's configuration, sizes of the network, width of the text, of a pooled text
TINY: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "flux": ("Flux", FLUX, 24, 12),
    "flux-fill": ("FluxInpaint", {**FLUX, "in_channels": 96}, 24, 12),
    "flux-schnell": ("FluxSchnell", {**FLUX, "guidance_embed": False}, 24, 12),
    "flux2": (
        "Flux2",
        {
            **FLUX, "in_channels": 128, "out_channels": 128, "patch_size": 1, "axes_dim": [4, 4, 4, 4],
            "vec_in_dim": None, "qkv_bias": False, "ops_bias": False, "global_modulation": True, "mlp_silu_act": True,
            "txt_ids_dims": [3], "default_ref_method": "index", "ref_index_scale": 10.0,
        },
        24,
        0,
    ),
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
            **LUMINA, "dim": 256, "axes_dims": [32, 48, 48], "n_kv_heads": 2, "z_image_modulation": True,
            "time_scale": 1000.0, "pad_tokens_multiple": 32, "rope_theta": 256.0,
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
    "krea2": (
        "Krea2",
        {
            "features": 64, "tdim": 16, "txtdim": 12, "heads": 4, "kvheads": 2, "multiplier": 1, "layers": 3,
            "txtlayers": 2, "txtheads": 2, "txtkvheads": 1,
        },
        24,
        0,
    ),
    "mage-flow": (
        "MageFlow",
        {
            "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
        },
        24,
        0,
    ),
    "anima": ("Anima", COSMOS, 24, 0),
    "cosmos-predict2": ("CosmosT2IPredict2", COSMOS, 24, 0),
    "ideogram4": (
        "Ideogram4",
        {
            "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16, "intermediate_size": 64,
            "adaln_dim": 16, "llm_features_dim": 24, "mrope_section": [4, 2, 2],
        },
        24,
        0,
    ),
    "kandinsky5": (
        "Kandinsky5Image",
        {
            "in_text_dim": 24, "in_text_dim2": 12, "time_dim": 16, "model_dim": 32, "ff_dim": 64,
            "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 3, "axes_dims": (4, 6, 6),
            "rope_scale_factor": (1.0, 1.0, 1.0),
        },
        24,
        12,
    ),
    "ernie": (
        "ErnieImage",
        {
            "hidden_size": 32, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 64, "text_in_dim": 24,
            "rope_axes_dim": (4, 6, 6),
        },
        24,
        0,
    ),
    "boogu": (
        "Boogu", {**OMNIGEN, "num_layers": 2, "num_double_stream_layers": 2, "instruction_feat_dim": 24}, 24, 0,
    ),
    "omnigen2": ("Omnigen2", {**OMNIGEN, "num_layers": 3, "text_feat_dim": 24}, 24, 0),
    "hidream": (
        "HiDream",
        {
            "patch_size": 2, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "caption_channels": [24, 20], "text_emb_dim": 12, "axes_dims_rope": (8, 4, 4),
            "llama_layers": [0, 1, 1, 1],
        },
        24,
        12,
    ),
    "chroma-radiance": (
        "ChromaRadiance",
        {
            **FLUX, "in_channels": 3, "out_channels": 3, "patch_size": 16, "in_dim": 64, "hidden_dim": 32,
            "out_dim": 32, "n_layers": 1, "nerf_hidden_size": 8, "nerf_mlp_ratio": 2, "nerf_depth": 1,
            "nerf_max_freqs": 4, "nerf_tile_size": 0, "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": True,
        },
        24,
        0,
    ),
    "hunyuan-image": (
        "HunyuanImage21",
        {
            **FLUX, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [8, 8], "theta": 256,
            "vec_in_dim": None, "guidance_embed": False, "byt5": False, "meanflow": False,
            "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
        },
        24,
        0,
    ),
    "hunyuan-video": (
        "HunyuanVideo",
        {
            **FLUX, "patch_size": [1, 2, 2], "theta": 256, "byt5": False, "meanflow": False,
            "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
        },
        24,
        12,
    ),
    "longcat": (
        "LongCatImage", {**FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}, 24, 0,
    ),
}  # fmt: skip
# Those that are no transformers, with attentions in the places where the real ones have them.
UNETS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "sd15": (
        "SD15",
        {
            **UNET, "adm_in_channels": None, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False,
        },
        24,
        0,
    ),
    "sdxl": (
        "SDXL",
        {
            **UNET, "num_classes": "sequential", "adm_in_channels": 12 + 6 * 256, "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
            "num_head_channels": 32,
        },
        24,
        12,
    ),
}  # fmt: skip
UNETS["sd15-inpaint"] = ("SD15", {**UNETS["sd15"][1], "in_channels": 9}, 24, 0)
UNETS["sd2"] = ("SD20", {**UNETS["sd15"][1], "use_linear_in_transformer": True, "num_head_channels": 32}, 24, 0)
UNETS["sdxl-inpaint"] = ("SDXL", {**UNETS["sdxl"][1], "in_channels": 9}, 24, 12)
