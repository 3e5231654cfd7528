"""The context encoder: sees the whole canvas once, and tells each hole token what it needs to know (paper, 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..core.tokens import HoleTokens
from .config import NetworkConfig
from .layers import AttentionFunction, CrossAttention, Mlp, placed, sdpa


class EncoderBlock(nn.Module):
    """Pre-norm transformer block; queries may be fewer than the tokens they attend to."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, operations: Any, attention: AttentionFunction, **kw: Any):
        super().__init__()
        self.norm1 = operations.LayerNorm(dim, eps=1e-6, **kw)
        self.attn = CrossAttention(dim, heads, operations, attention, **kw)
        self.norm2 = operations.LayerNorm(dim, eps=1e-6, **kw)
        self.mlp = Mlp(dim, mlp_ratio * dim, dim, operations, **kw)

    def forward(self, x: Tensor, rotation: Tensor | None = None, hole: HoleTokens | None = None) -> Tensor:
        """x: [B, N, d]; rotation: [1, N, 2 · d / heads] of their places

        hole: the tokens that leave the block, padded as [B, n, d]; None: all of them
        """
        normed = self.norm1(x)
        packing = None if hole is None else hole.packing

        def drop_visible(tokens: Tensor) -> Tensor:
            tokens = tokens if hole is None else hole.gather(tokens)
            return tokens if packing is None else packing.pack(tokens)

        keys_values = self.attn.keys_values(normed, rotation)
        if rotation is not None and hole is not None:
            rotation = drop_visible(rotation.expand(len(x), -1, -1))
        x = drop_visible(x) + self.attn(drop_visible(normed), keys_values, packing=packing, rotation=rotation)
        x = x + self.mlp(self.norm2(x))
        return x if packing is None else packing.unpack(x)


class ContextEncoder(nn.Module):
    """Masked canvas latent and mask -> one context token per hole token."""

    def __init__(
        self, config: NetworkConfig, operations: Any = nn, attention: AttentionFunction = sdpa, **factory: Any
    ):
        super().__init__()
        self.config = config
        self.mask_down = operations.Conv2d(1, config.mask_channels, config.cell, stride=config.cell, **factory)
        # Patches overlap by one latent cell on each side.
        self.patch_embed = operations.Conv2d(
            config.channels + config.mask_channels, config.width, config.patch + 2,
            stride=config.patch, padding=1, **factory,
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.heads, config.mlp_ratio, operations, attention, **factory)
            for _ in range(config.encoder_depth)
        )
        self.norm = operations.LayerNorm(config.width, eps=1e-6, **factory)

    def forward(self, latent: Tensor, mask: Tensor, hole: HoleTokens) -> Tensor:
        """Context tokens [B, n, width] of the hole.

        latent: [B, C, h, w], the canvas encoded with its hole filled with grey
        mask: [B, 1, h·cell, w·cell], 1 = hole
        """
        x = torch.cat((latent, self.mask_down(mask.to(latent.dtype))), dim=1)
        x = rearrange(self.patch_embed(x), "b d h w -> b (h w) d")
        everywhere = torch.arange(hole.total, device=x.device)[None]
        x, rotation = placed(x, everywhere, hole.grid, self.config)
        if not self.blocks:  # as the baselines are: each token knows what it covers, no more
            return self.norm(hole.gather(x))
        for block in self.blocks[:-1]:
            x = block(x, rotation)
        # Token drop (paper, equation 3): only hole tokens leave the encoder. The last block computes nothing else,
        # which is exact, because blocks mix tokens through keys and values alone.
        return self.norm(self.blocks[-1](x, rotation, hole))

    def initialise(self) -> None:
        """DiT's initialisation; the mask convolution starts as a box filter with a little noise."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))
        nn.init.zeros_(self.patch_embed.bias)
        nn.init.normal_(self.mask_down.weight, mean=1 / self.config.cell**2, std=0.02)
        nn.init.zeros_(self.mask_down.bias)
