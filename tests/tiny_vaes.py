"""Stable Diffusion's VAE in both layouts of names, with next to no width and random weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

CHANNELS, GROUPS, CELL = (8, 8, 16, 16), 4, 8


def diffusers_vae(**changes: Any) -> AutoencoderKL:
    settings = dict(
        block_out_channels=CHANNELS, norm_num_groups=GROUPS, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return AutoencoderKL(**settings | changes).eval().requires_grad_(False)


def parts(**modules: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, part in modules.items():
        setattr(module, name, part)
    return module


class Block(nn.Module):
    """A residual block as the original code names its parts."""

    def __init__(self, old: int, new: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(GROUPS, channels, eps=1e-6) for channels in (old, new))
        self.conv1, self.conv2 = nn.Conv2d(old, new, 3, padding=1), nn.Conv2d(new, new, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(old, new, 1) if old != new else None

    def forward(self, x: Tensor) -> Tensor:
        inside = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return inside + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attend(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        q, k, v = (layer(normal).flatten(2).transpose(1, 2)[:, None].contiguous() for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)  # [B, 1, N, C]
        return x + self.proj_out(attended.transpose(2, 3).reshape(x.shape))


def middle(channels: int) -> nn.Module:
    return parts(block_1=Block(channels, channels), attn_1=Attend(channels), block_2=Block(channels, channels))


def head(channels: int, out: int) -> dict[str, nn.Module]:
    norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
    return {"norm_out": norm, "conv_out": nn.Conv2d(channels, out, 3, padding=1)}


class OriginalDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.mid = nn.Conv2d(4, CHANNELS[-1], 3, padding=1), middle(CHANNELS[-1])
        self.up = nn.ModuleList()
        for i, channels in enumerate(CHANNELS):
            old = CHANNELS[min(i + 1, 3)]
            level = parts(block=nn.ModuleList([Block(old, channels), Block(channels, channels)]), attn=nn.ModuleList())
            if i:
                level.upsample = parts(conv=nn.Conv2d(channels, channels, 3, padding=1))
            self.up.append(level)
        for name, part in head(CHANNELS[0], 3).items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(x))))
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample"):
                x = level.upsample.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class OriginalEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.mid = nn.Conv2d(3, CHANNELS[0], 3, padding=1), middle(CHANNELS[-1])
        self.down = nn.ModuleList()
        for i, channels in enumerate(CHANNELS):
            level = parts(block=nn.ModuleList([Block(CHANNELS[max(i - 1, 0)], channels)]), attn=nn.ModuleList())
            if i < 3:
                level.downsample = parts(conv=nn.Conv2d(channels, channels, 3, stride=2))
            self.down.append(level)
        for name, part in head(CHANNELS[-1], 8).items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            if hasattr(level, "downsample"):
                x = level.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class OriginalVAE(nn.Module):
    """In the original layout, as ComfyUI keeps it; without the convolutions around the latents, as Flux has none."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = OriginalEncoder(), OriginalDecoder()
