"""Networks on packed rows: what they are for one by one, and nothing computed at their padding.

The reference is a row by itself. Tolerance: relative to the largest value; fp32 has 6e-8, and sums of a few hundred
products in another order differ by a few times that.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_networks import ROTARY, SMALL, TINY, plain_attention, random_inputs, random_mask, random_prompts
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import PIXART_1024, NetworkConfig
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.decoder import LazyDecoder

GRID = (4, 6)
BATCHES = [(3, 24, 1), (0, 6), (5, 7, 5, 0, 7, 7), (2, 9, 2, 9, 2, 9), (1, 2)]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def inputs(config: NetworkConfig, *counts: int) -> tuple[HoleTokens, Tensor, Tensor, Tensor, Tensor, Tensor]:
    hole = HoleTokens.from_grid_mask(random_mask(GRID, *counts))
    lengths = [2 + 3 * row % 10 for row in range(len(counts))]
    return hole, *random_inputs(config, hole), *random_prompts(config, *lengths)


@pytest.mark.parametrize("config", [TINY, SMALL, ROTARY], ids=["patch 2", "patch 1", "rotary"])
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


@pytest.mark.parametrize("config", [TINY, ROTARY], ids=["added", "rotary"])
@pytest.mark.parametrize("counts", BATCHES, ids=str)
def test_packed_equals_padded_with_masks(config: NetworkConfig, counts: tuple[int, ...]) -> None:
    encoder, decoder = ContextEncoder(config).eval(), LazyDecoder(config).eval()
    hole, x, t, context, text, text_mask = inputs(config, *counts)
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
