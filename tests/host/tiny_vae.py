"""The host's VAE with next to no width and random weights."""

from __future__ import annotations

from typing import Any

import torch


def tiny_network(channels: int = 4) -> Any:
    """The network of Stable Diffusion's VAE, in the host's own class."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    return fill(AutoencoderKL(**config(channels)).eval().requires_grad_(False))


def tiny_vae(channels: int = 4) -> Any:
    """A VAE as the host's loaders make it."""
    import comfy.sd

    vae = comfy.sd.VAE(sd={}, config={"params": config(channels)}, dtype=torch.float32)
    fill(vae.first_stage_model.requires_grad_(False))
    vae.latent_channels = channels
    return vae


def config(channels: int) -> dict[str, Any]:
    sizes = dict(
        double_z=True, z_channels=channels, resolution=256, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 2, 2],
        num_res_blocks=1, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    return {"ddconfig": sizes, "embed_dim": channels}


def fill(network: Any) -> Any:
    """The host's layers do not fill their weights."""
    torch.manual_seed(0)
    for name, part in network.named_parameters():
        torch.nn.init.normal_(part, std=part[0].numel() ** -0.5 if part.ndim > 1 else 0.1)
        if "norm" in name and name.endswith("weight"):
            part.add_(1)
    return network
