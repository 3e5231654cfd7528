"""Rows of different sizes laid end to end: what they are for one by one, and nothing computed at their padding."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from test_networks import SMALL, TINY, plain_attention, random_inputs, random_mask, random_prompts
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lazydiff.core.packing import Packing, groups_of
from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import PIXART_1024, NetworkConfig
from lazydiff.model.context import LazyContext
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import encode, sample

GRID = (4, 6)
BATCHES = [(3, 24, 1), (0, 6), (5, 7, 5, 0, 7, 7), (2, 9, 2, 9, 2, 9), (1, 2)]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# The layout


@pytest.mark.parametrize("counts", [*BATCHES, (), (4,), (0, 0), *product(range(3), repeat=4)], ids=str)
def test_groups_are_the_rows_each_once(counts: tuple[int, ...]) -> None:
    rows = range(len(counts))
    found = [(row, group) for group in groups_of(counts) for row in rows[group.rows]]
    assert sorted(row for row, _ in found) == [row for row in rows if counts[row]]
    for row, group in found:
        assert group.tokens == counts[row] and group.size == len(rows[group.rows])


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("tiled", [True, False])
def test_rows_of_one_canvas_share_a_group(times: int, tiled: bool) -> None:
    """However many variations and branches of guidance there are, there are no more attentions than canvases."""
    hole = HoleTokens.from_grid_mask(random_mask(GRID, 3, 24, 1))
    packing = (hole.tile(times) if tiled else hole.repeat(times)).packing
    assert packing is not None and [group.size for group in packing.groups] == [times] * 3


@pytest.mark.parametrize("counts", BATCHES, ids=str)
def test_packed_tokens_are_the_valid_ones_of_each_row(counts: tuple[int, ...]) -> None:
    hole = HoleTokens.from_grid_mask(random_mask(GRID, *counts))
    packing, x = hole.packing, torch.randn(*hole.index.shape, 5)
    assert packing is not None
    packed = packing.pack(x)
    assert packed.shape == (1, sum(counts), 5)
    assert torch.equal(packing.unpack(packed), x * hole.valid[..., None])
    expected = [x[row, :count] for group in packing.groups for row, count in rows_of(group, counts)]
    assert torch.equal(packed[0], torch.cat(expected))
    owners = torch.arange(float(len(counts))).view(1, -1, 1, 1)
    assert torch.equal(packing.spread(owners)[0, 0, :, 0].long(), packing.owners)


def rows_of(group, counts: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(enumerate(counts))[group.rows]


def test_only_what_is_padded_is_packed() -> None:
    hole = HoleTokens.from_grid_mask(random_mask(GRID, 5, 5))
    assert hole.packing is None and not hole.padded
    ragged = HoleTokens.from_grid_mask(random_mask(GRID, 5, 4))
    assert ragged.packing is ragged.packing  # made once
    masked = ragged.keep_padding()
    assert masked.packing is None and torch.equal(masked.key_mask, ragged.valid)


def test_packing_asks_the_device_for_nothing() -> None:
    """A tensor on the meta device has no values to ask for."""
    packing = Packing.of((3, 1), 3, "meta")
    assert packing.pack(torch.empty(2, 3, 5, device="meta")).shape == (1, 4, 5)


# Networks. The reference is a row by itself. Tolerance: relative to the largest value; fp32 has 6e-8, and sums of a
# few hundred products in another order differ by a few times that.


def inputs(config: NetworkConfig, *counts: int) -> tuple[HoleTokens, Tensor, Tensor, Tensor, Tensor, Tensor]:
    hole = HoleTokens.from_grid_mask(random_mask(GRID, *counts))
    lengths = [2 + 3 * row % 10 for row in range(len(counts))]
    return hole, *random_inputs(config, hole), *random_prompts(config, *lengths)


@pytest.mark.parametrize("config", [TINY, SMALL], ids=["patch 2", "patch 1"])
@pytest.mark.parametrize("counts", BATCHES, ids=str)
def test_decoder_equals_its_rows_one_by_one(config: NetworkConfig, counts: tuple[int, ...]) -> None:
    decoder = LazyDecoder(config).eval()
    hole, x, t, context, text, text_mask = inputs(config, *counts)
    together = decoder(x, t, decoder.text_keys(text, text_mask), hole, context)
    assert not together[~hole.valid].any()
    for i, count in enumerate(counts):
        if not count:
            continue
        row, length = slice(i, i + 1), int(text_mask[i].sum())
        one = HoleTokens(hole.index[row, :count], hole.valid[row, :count], GRID, (count,))
        keys = decoder.text_keys(text[row, :length])
        alone = decoder(x[row, :count], t[row], keys, one, context[row, :count])
        assert (together[row, :count] - alone).abs().max() <= 1e-6 * alone.abs().max()


@pytest.mark.parametrize("counts", BATCHES, ids=str)
def test_packed_equals_padded_with_masks(counts: tuple[int, ...]) -> None:
    encoder, decoder = ContextEncoder(TINY).eval(), LazyDecoder(TINY).eval()
    hole, x, t, context, text, text_mask = inputs(TINY, *counts)
    keys = decoder.text_keys(text, text_mask)
    latent, mask = torch.randn(len(counts), 4, 8, 12), torch.rand(len(counts), 1, 64, 96).round()
    for network, given in ((decoder, (x, t, keys, hole, context)), (encoder, (latent, mask, hole))):
        padded = network(*(value.keep_padding() if value is hole else value for value in given))[hole.valid]
        assert (network(*given)[hole.valid] - padded).abs().max() <= 1e-6 * padded.abs().max()


def test_gradients_pass_through_a_packed_batch() -> None:
    decoder = LazyDecoder(TINY)
    hole, x, t, context, text, text_mask = inputs(TINY, 3, 24, 1)
    gradients = []
    for each in (hole, hole.keep_padding()):
        decoder.zero_grad()
        with torch.enable_grad():
            decoder(x, t, decoder.text_keys(text, text_mask), each, context)[hole.valid].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in decoder.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm() != 0


def flops(network: LazyDecoder | ContextEncoder, *given: object) -> int:
    with FlopCounterMode(display=False) as counter:
        network(*given)
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [TINY, replace(PIXART_1024, decoder_depth=2)], ids=["tiny", "pixart"])
@pytest.mark.parametrize("counts", [(410, 41, 4), (100, 4000)], ids=str)
def test_no_padding_is_computed(config: NetworkConfig, counts: tuple[int, ...]) -> None:
    """Packed, a batch is the work of its rows one by one; padded, that of as many of its largest row."""
    decoder = LazyDecoder(config, attention=plain_attention, device="meta")
    n, width = max(counts), config.channels * config.patch**2

    def work(*counts: int, masked: bool = False) -> int:
        rows = len(counts)
        index = torch.zeros(rows, n, dtype=torch.int64, device="meta")
        hole = HoleTokens(index, index.bool(), (config.grid, config.grid), counts)
        hole = hole.keep_padding() if masked else hole
        x, context = (torch.empty(rows, n, channels, device="meta") for channels in (width, config.width))
        text = decoder.text_keys(torch.empty(rows, 12, config.text_width, device="meta"))
        return flops(decoder, x, torch.empty(rows, device="meta"), text, hole, context)

    one_by_one = sum(2 * config.macs(count, 12) for count in counts)
    ones = [1] * len(counts)
    time = work(*ones) - len(ones) * 2 * config.macs(1, 12)  # its embedding is what the formula leaves out
    assert work(*counts) - time == one_by_one
    assert work(*counts, masked=True) > 1.5 * work(*counts)


# Whole samplings


def test_a_batch_of_masks_equals_its_masks_one_by_one(model: LazyDiffusion) -> None:
    """Each mask with its own prompt and seed, at each of a sampling's steps. Steps amplify what differs between sums in
    another order; hence 1e-5."""
    image, mask = torch.rand(1, 3, 96, 96).expand(3, -1, -1, -1), torch.zeros(3, 1, 96, 96)
    mask[0, :, 8:40, 8:24] = mask[1, :, 50:90, 10:90] = mask[2, :, 16:24, 64:72] = 1
    prompts, seeds = ["a red tree", "a boat on a lake", "a"], [3, 4, 5]
    context = encode(model, image, mask)
    together = sample(model, context, prompts, seeds)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        one: LazyContext = encode(model, image[:1], mask[i : i + 1])
        alone = sample(model, one, [prompt], [seed])
        assert (together[i, : one.hole.count] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()
