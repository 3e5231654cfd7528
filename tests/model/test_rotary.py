"""Rotary positions against complex numbers and attention written out, and that offsets between tokens alone count.

Tolerances are those of test_networks.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import ROTARY, plain_attention, random_inputs, random_mask, random_prompts
from torch import Tensor

from lazydiff.core.tokens import HoleTokens
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.layers import SelfAttention, TokenLayout, rotate, rotation_table

close = dict(atol=1e-5, rtol=0.0)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"heads": 8}, "with rotary it must be a multiple of 32"),  # 6 numbers to a head
        ({"rotary": 3}, "rotary"),
        ({"micro_conditions": True, "width": 32}, "with micro_conditions it must be a multiple of 3"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(settings, reason):
    ROTARY.check()
    with pytest.raises(ValueError, match=reason):
        replace(ROTARY, **settings).check()


def turned(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rotary positions by complex numbers, [B, heads, h·w, dim]: the first half of the pairs turns by the row, the
    other by the column, each half from a radian a place down towards a hundredth."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    pairs = x.shape[-1] // 4
    speed = torch.tensor([100 ** (-i / pairs) for i in range(pairs)], dtype=torch.float64)
    angle = torch.cat([each.flatten()[:, None] * speed for each in (rows, columns)], dim=1)
    number = torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((number.real, number.imag), dim=-1).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_a_product_of_complex_numbers(dtype):
    x, table = torch.randn(2, 4, 15, 12).to(dtype), rotation_table((3, 5), 12, torch.device("cpu"))
    torch.testing.assert_close(rotate(x, table[None]), turned(x, (3, 5)), atol=float(torch.finfo(dtype).eps), rtol=0.01)


def test_only_offsets_between_tokens_count():
    """A hole elsewhere on a larger canvas is the same hole; one whose tokens change places is not."""
    decoder = LazyDecoder(ROTARY).eval()
    hole = HoleTokens.from_grid_mask(random_mask((4, 6), 9))
    x, t, context = random_inputs(ROTARY, hole)
    text = decoder.text_keys(*random_prompts(ROTARY, 6))
    places = hole.positions + torch.tensor([5, 3])
    moved = replace(hole, index=places[..., 0] * 20 + places[..., 1], grid=(20, 20))
    here, there = (decoder(x, t, text, each, context) for each in (hole, moved))
    torch.testing.assert_close(here, there, **close)
    reversed_places = replace(hole, index=hole.index.flip(1))
    assert not torch.allclose(decoder(x, t, text, reversed_places, context), here, atol=1e-3)


@pytest.mark.parametrize("masked, rotary", [(True, True), (True, False), (False, True), (False, False)])
def test_some_rows_of_a_batch_are_attended_to_as_in_it(masked, rotary):
    attention, x, rows = SelfAttention(48, 4), torch.randn(3, 9, 48), torch.tensor([2, 0])
    mask = torch.randn(3, 1, 1, 9) if masked else None
    rotation = rotation_table((5, 6), 12, x.device)[torch.randint(30, (3, 9))] if rotary else None
    layout = TokenLayout(mask, None, rotation)
    torch.testing.assert_close(attention(x[rows], layout.of(rows)), attention(x, layout)[rows], **close)


def test_encoder_with_rotary_positions_equals_attention_written_out():
    grid, mask = (4, 6), random_mask((4, 6), 1, 9)
    encoder, hole = ContextEncoder(ROTARY).eval(), HoleTokens.from_grid_mask(mask)
    latent, pixels = torch.randn(2, 4, 8, 12), torch.randn(2, 1, 64, 96)
    x = encoder.patch_embed(torch.cat((latent, encoder.mask_down(pixels)), dim=1)).flatten(2).mT
    for block in encoder.blocks:
        normed = block.norm1(x)
        q, k, v = (
            each.unflatten(-1, (ROTARY.heads, -1)).transpose(1, 2)
            for each in (block.attn.q_linear(normed), *block.attn.kv_linear(normed).chunk(2, dim=-1))
        )
        x = x + block.attn.proj(plain_attention(turned(q, grid), turned(k, grid), v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    expected, valid = hole.gather(encoder.norm(x)), hole.valid[..., None]
    torch.testing.assert_close(encoder(latent, pixels, hole) * valid, expected * valid, **close)
