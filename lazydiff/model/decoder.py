"""The decoder: PixArt-α that runs on hole tokens alone, told by one added layer what the canvas looks like.

Parameter names are those of the original PixArt-α, so that its checkpoints drop in; only `ctx_fuse` is new.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.tokens import HoleTokens, channels_first
from .config import NetworkConfig
from .layers import (
    AttentionFunction,
    CrossAttention,
    Gate,
    KVHook,
    Mlp,
    SelfAttention,
    TokenLayout,
    additive,
    always,
    key_padding,
    modulate,
    placed,
    sdpa,
    sinusoid,
    size_table,
)


class TextKeys(NamedTuple):
    """Keys and values of one batch of prompts for every block, and the key mask.

    mask: [B, L], numbers to add to the scores or bool (True = attend); None: nothing is padded
    """

    blocks: list[tuple[Tensor, Tensor]]
    mask: Tensor | None

    def repeat(self, times: int) -> TextKeys:
        """Each prompt repeated `times` times in place."""
        blocks = [(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in self.blocks]
        return TextKeys(blocks, None if self.mask is None else self.mask.repeat_interleave(times, 0))


class SizeEmbedder(nn.Module):
    """A number's sinusoids -> a vector: PixArt's embedding of time step, canvas size and aspect ratio."""

    def __init__(self, dim: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(256, dim, **factory), nn.SiLU(), operations.Linear(dim, dim, **factory)
        )

    def forward(self, waves: Tensor) -> Tensor:
        return self.mlp(waves)


def random_table(rows: int, dim: int, dtype: torch.dtype | None = None, **factory: Any) -> nn.Parameter:
    """DiT's initial table of shifts and scales; of any number type, as those of 8 bits cannot be drawn at random."""
    return nn.Parameter((torch.randn(rows, dim, **factory) / dim**0.5).to(dtype or torch.get_default_dtype()))


class PatchEmbedder(nn.Module):
    """A convolution over patches, given patches that were cut out beforehand."""

    def __init__(self, channels: int, dim: int, patch: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.cell = (channels, patch, patch)
        self.proj = operations.Conv2d(channels, dim, patch, stride=patch, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C·p·p] in the order (c, ph, pw) -> [B, n, d]"""
        return self.proj(x.reshape(-1, *self.cell)).flatten(1).unflatten(0, x.shape[:2])


class CaptionEmbedder(nn.Module):
    def __init__(self, text_width: int, dim: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.y_proj = Mlp(text_width, dim, dim, operations, **factory)

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj(text)


class DecoderBlock(nn.Module):
    """adaLN-single block: time modulates attention and MLP through one table per block; cross-attention is plain."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, operations: Any, attention: AttentionFunction, **kw: Any):
        super().__init__()
        self.norm = operations.LayerNorm(dim, elementwise_affine=False, eps=1e-6, **kw)
        self.attn = SelfAttention(dim, heads, operations, attention, **kw)
        self.cross_attn = CrossAttention(dim, heads, operations, attention, **kw)
        self.mlp = Mlp(dim, mlp_ratio * dim, dim, operations, **kw)
        self.scale_shift_table = random_table(6, dim, **kw)

    def forward(
        self, x: Tensor, table: Tensor, text: tuple[Tensor, Tensor, Tensor | None], layout: TokenLayout,
        kv_hook: KVHook | None = None, gate: Gate = always,
    ) -> Tensor:  # fmt: skip
        """x: [B, n, d], packed [1, Σn, d]; table: [6, B, 1, d] of `LazyDecoder.modulation`

        text: keys, values and their mask; gate: around attention and MLP
        """
        keys, values, text_mask = text
        packing = layout.packing
        shift1, factor1, gate1, shift2, factor2, gate2 = table if packing is None else packing.spread(table)
        attended = gate(self.attn, lambda: modulate(self.norm(x), shift1, factor1), layout, kv_hook)
        x = torch.addcmul(x, gate1, attended)
        x = x + self.cross_attn(x, (keys, values), text_mask, packing)
        return torch.addcmul(x, gate2, gate(self.mlp, lambda: modulate(self.norm(x), shift2, factor2)))


class FinalLayer(nn.Module):
    def __init__(self, dim: int, out: int, operations: Any = nn, **factory: Any):
        super().__init__()
        self.norm = operations.LayerNorm(dim, elementwise_affine=False, eps=1e-6, **factory)
        self.linear = operations.Linear(dim, out, **factory)
        self.scale_shift_table = random_table(2, dim, **factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [B, n, d]; time: [1, B, 1, d]; packed, x: [1, Σn, d]; time: [1, 1, Σn, d]"""
        shift, scale = self.scale_shift_table.to(time)[:, None, None] + time
        return self.linear(modulate(self.norm(x), shift, 1 + scale))


class LazyDecoder(nn.Module):
    """Noisy hole tokens, time, context tokens and prompt -> the prediction for each hole token."""

    def __init__(
        self, config: NetworkConfig, operations: Any = nn, attention: AttentionFunction = sdpa, **factory: Any
    ):
        super().__init__()
        self.config, d = config, config.width
        outputs = config.channels * (2 if config.learned_variance else 1)
        self.x_embedder = PatchEmbedder(config.channels, d, config.patch, operations, **factory)
        self.ctx_fuse = operations.Linear(2 * d, d, **factory)
        self.t_embedder = SizeEmbedder(d, operations, **factory)
        if config.micro_conditions:
            self.csize_embedder = SizeEmbedder(d // 3, operations, **factory)
            self.ar_embedder = SizeEmbedder(d // 3, operations, **factory)
        self.t_block = nn.Sequential(nn.SiLU(), operations.Linear(d, 6 * d, **factory))
        self.y_embedder = CaptionEmbedder(config.text_width, d, operations, **factory)
        self.blocks: Any = nn.ModuleList(  # of DecoderBlock, which a ModuleList cannot say
            DecoderBlock(d, config.heads, config.mlp_ratio, operations, attention, **factory)
            for _ in range(config.decoder_depth)
        )
        self.final_layer = FinalLayer(d, outputs * config.patch**2, operations, **factory)

    def text_keys(self, text: Tensor, mask: Tensor | None = None) -> TextKeys:
        """Keys and values of prompts [B, L, text_width] for every block: exact, and the same at every step.

        mask: [B, L] bool, True = a token of the prompt
        """
        y = self.y_embedder(text)
        blocks = [block.cross_attn.keys_values(y) for block in self.blocks]
        return TextKeys(blocks, additive(mask, y.dtype))

    def forward(
        self, x: Tensor, t: Tensor, text: TextKeys, hole: HoleTokens, context: Tensor | None = None,
        kv_hook: KVHook | None = None, gate: Gate = always,
    ) -> Tensor:  # fmt: skip
        """Prediction [B, n, outputs·p·p], each token in the order (c, ph, pw); with a learned variance, the first half
        is the prediction and the second half the variance.

        x: [B, n, C·p·p] noisy hole tokens in the order (c, ph, pw); t: [B], or [1] for all rows
        context: [B, n, width] from the encoder, or None: tokens that cannot see the canvas (stock PixArt's behaviour,
            where positions are added)
        kv_hook: called with every block's keys and values in turn; it may add those of tokens that are not in x, which
            nothing may be padded for
        Rows of different sizes are laid end to end, and nothing is computed at their padding, where the answer is 0.
        gate: stands around every block's attention and MLP in turn; it may answer in a module's place
        Source: paper, section 3.3 and equation 4; Chen et al. 2023 (PixArt-α), section 2.3.
        """
        time = self.time_embedding(t, hole, x.dtype)
        tables, time = self.modulation(time), time[None, :, None]
        key_mask, text_mask = (key_padding(additive(mask, x.dtype)) for mask in (hole.key_mask, text.mask))
        places, packing = hole.index, hole.packing
        if packing is not None:
            x, places, key_mask = packing.pack(x), packing.pack(places[..., None])[..., 0], None
            context = None if context is None else packing.pack(context)
            time = packing.spread(time)

        h, rotation = placed(self.x_embedder(x), places, hole.grid, self.config)
        h = self.ctx_fuse(torch.cat((h, torch.zeros_like(h) if context is None else context.to(h.dtype)), dim=-1))
        layout = TokenLayout(key_mask, packing, rotation)
        for block, table, keys_values in zip(self.blocks, tables, text.blocks, strict=True):
            h = block(h, table, (*keys_values, text_mask), layout, kv_hook, gate)
        h = channels_first(self.final_layer(h, time), self.config.patch)
        return h if packing is None else packing.unpack(h)

    def time_embedding(self, t: Tensor, hole: HoleTokens, dtype: torch.dtype) -> Tensor:
        """Time step, and for models that know it the size of the whole canvas in pixels as PixArt-α's
        micro-conditions. [B, width]"""
        time = self.t_embedder(sinusoid(t).to(dtype))
        if not self.config.micro_conditions:
            return time
        height, width = (side * self.config.token for side in hole.grid)
        waves = size_table(height, width, t.device, dtype)
        return time + torch.cat((*self.csize_embedder(waves[:2]), *self.ar_embedder(waves[2:])))

    def modulation(self, time: Tensor) -> Tensor:
        """What time does to each block, [blocks, 6, B, 1, d]: shift, 1 + scale and gate of its attention and its MLP.

        time: [B, d]. All blocks' at once, because kernels this small take as long to start as to run.
        """
        if not self.blocks:
            return time.new_zeros(0)
        tables = torch.stack([block.scale_shift_table.to(time.device) for block in self.blocks]).to(time.dtype)
        tables = tables[:, :, None, None] + self.t_block(time).unflatten(1, (6, 1, -1)).movedim(1, 0)
        tables[:, 1::3].add_(1)
        return tables

    def initialise(self) -> None:
        """DiT's initialisation, but with open residual gates, which a small model learns faster from."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        modulation: Any = self.t_block[1]
        nn.init.normal_(modulation.weight, std=0.02)
        with torch.no_grad():
            modulation.bias.view(6, -1)[[2, 5]] = 1.0
        nn.init.zeros_(self.final_layer.linear.weight)
        d = self.config.width
        nn.init.xavier_uniform_(self.ctx_fuse.weight[:, :d])
        nn.init.xavier_uniform_(self.ctx_fuse.weight[:, d:])

    def ignore_context(self) -> None:
        """Set the added layer to [I | 0]: without `rotary` the network then equals stock PixArt on its tokens."""
        d = self.config.width
        with torch.no_grad():
            self.ctx_fuse.weight.copy_(torch.cat((torch.eye(d), torch.zeros(d, d)), dim=1))
            self.ctx_fuse.bias.zero_()
