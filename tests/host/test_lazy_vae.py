"""The lazy decode and encode with the host's own VAE modules."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from lazydiff.vae.lazy_vae import full_decode, full_encode, lazy_decode, lazy_encode

from .tiny_vae import tiny_network

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def vae(host: ModuleType) -> Any:
    return tiny_network()


@pytest.mark.parametrize("half", ["decode", "encode"])
@torch.inference_mode()
def test_equals_the_hosts_own(vae: Any, half: str) -> None:
    x = torch.randn(2, 4, 24, 20) if half == "decode" else torch.rand(2, 3, 192, 160) * 2 - 1
    mask = torch.zeros(1, 1, 192, 160)
    mask[..., 70:110, 100:140] = 1
    run, lazily = (full_decode, lazy_decode) if half == "decode" else (full_encode, lazy_encode)
    state = run(vae, x)
    own = vae.decode(x) if half == "decode" else vae.quant_conv(vae.encoder(x))
    # The host may write attention another way; then sums in another order. Relative to the largest value.
    tolerance = 1e-5 * float(own.abs().max())
    torch.testing.assert_close(state.output, own, atol=tolerance, rtol=0)

    blank = state._replace(output=torch.zeros_like(state.output))
    result = lazily(vae, x, blank, mask, limit=math.inf)
    assert result.plan.boxes
    for box in result.plan.boxes:
        torch.testing.assert_close(box.of(result.output), box.of(own), atol=tolerance, rtol=0)
