"""The work of a step and the number of parameters: counted, against the formulas and the paper."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import SMALL, TINY, plain_attention, random_inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import PIXART_1024, NetworkConfig
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.decoder import LazyDecoder


def count_flops(config: NetworkConfig, n: int, device: str, keys: int | None = None) -> int:
    side = config.grid
    hole = HoleTokens.from_grid_mask((torch.arange(side**2) < n).view(1, side, side)).to(device)
    # Torch's fused attention has no entry in the counter on every device; separate products have.
    decoder = LazyDecoder(config, attention=plain_attention, device=device)
    x, t, context = (tensor.to(device) for tensor in random_inputs(config, hole))
    text = decoder.text_keys(torch.zeros(1, config.text_length, config.text_width, device=device))
    with FlopCounterMode(display=False) as counter:
        decoder(x, t, text, hole, context, None if keys is None else partial(pad_keys, keys))
    return counter.get_total_flops()


def pad_keys(keys: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(F.pad(x, (0, 0, 0, keys - x.shape[-2])) for x in (k, v))


def test_work_of_a_step_with_kept_keys():
    """As below, with fewer queries than keys; at 10 % of 1024 px some ten times less than everything."""
    macs = [PIXART_1024.macs(n, PIXART_1024.text_length, 4096) for n in (410, 4096)]
    assert count_flops(PIXART_1024, 410, "meta", keys=4096) == pytest.approx(2 * macs[0], rel=0.01)
    assert macs[1] / macs[0] == pytest.approx(4096 / 410, rel=0.03)


@pytest.mark.parametrize("n", [410, 4096])
@pytest.mark.parametrize("config, device", [(TINY, "meta"), (SMALL, "cpu"), (PIXART_1024, "meta")])
def test_work_of_a_step_is_the_formula_of_the_paper(config, device, n):
    """Within 1 %: the formula leaves out the embedding of the time step."""
    n = min(n, config.grid**2)
    assert count_flops(config, n, device) == pytest.approx(2 * config.macs(n, config.text_length), rel=0.01)


def test_work_of_the_encoder():
    """On 64×64 tokens that are all hole. The formula leaves out the convolution of the mask."""
    config = replace(PIXART_1024, encoder_depth=2)
    encoder = ContextEncoder(config, attention=plain_attention, device="meta")
    hole = HoleTokens.everything(1, (64, 64)).to("meta")
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 4, 128, 128, device="meta"), torch.zeros(1, 1, 1024, 1024, device="meta"), hole)
    assert counter.get_total_flops() == pytest.approx(2 * config.encoder_macs(64 * 64), rel=0.001)


def test_parameter_counts_of_the_paper():
    """PixArt-α XL/2 has 611,349,152; the added layer 2·1152²+1152; the encoder about 191.4 M at depth 12."""
    decoder, encoder = LazyDecoder(PIXART_1024, device="meta"), ContextEncoder(PIXART_1024, device="meta")
    fuse = sum(p.numel() for p in decoder.ctx_fuse.parameters())
    assert fuse == 2_655_360
    assert sum(p.numel() for p in decoder.parameters()) == 611_349_152 + fuse
    # 12 blocks, the patch and mask convolutions, the final norm.
    expected = 12 * 15_940_224 + (8 * 16 + 1) * 1152 + (64 + 1) * 4 + 2 * 1152
    assert sum(p.numel() for p in encoder.parameters()) == expected == pytest.approx(191.4e6, rel=1e-3)
