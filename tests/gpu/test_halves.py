"""Weights in half precision and below: what comes in float32 is cast where it enters, what leaves is float32."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from samples import scene
from tiny_vaes import diffusers_vae
from torch import nn

from lazydiff.core.tokens import HoleTokens
from lazydiff.evaluation.laboratory import SMALL
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.config import PRESETS, Sampling
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.latent_space import DiffusersVAE
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.sample import SampleSettings
from lazydiff.vae.canvas_vae import LazyVAE

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
CLOSE = {torch.float16: 2**-7, torch.bfloat16: 2**-4}  # of the largest value, after some ten layers


@HALVES
def test_edits_by_a_whole_model_in_half_precision(dtype: torch.dtype) -> None:
    """The small model's few layers change a picture by some grey levels at most, and nothing outside the mask."""
    image, mask, prompt = scene(3)
    settings = SampleSettings(Sampling("euler", 4))
    model = load_checkpoint(SMALL, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    ours = edit(model, image, mask, prompt, [1], settings)
    exact = edit(load_checkpoint(SMALL), image, mask, prompt, [1], settings)
    assert ours.dtype == torch.float32 and torch.equal(ours * (mask == 0), image * (mask == 0))
    assert 0 < (ours - exact).abs().max() <= {torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]


@HALVES
def test_context_encoders(model: LazyDiffusion, dtype: torch.dtype) -> None:
    image, mask, _ = scene(3)
    hole, half = HoleTokens.from_mask(mask, model.config.network.token), deepcopy(model)
    half.encoder.to(dtype)
    exact = model.context(image, mask, hole)
    ours = half.context(image, mask, hole)
    assert 0 < (ours - exact).abs().max() <= CLOSE[dtype] * exact.abs().max()


@HALVES
def test_public_vaes(dtype: torch.dtype) -> None:
    vae = diffusers_vae()
    space, image = DiffusersVAE(vae), torch.rand(1, 3, 64, 64)
    latent = space.encode(image)
    half = DiffusersVAE(deepcopy(vae)).to(dtype)
    for ours, exact in ((half.encode(image), latent), (half.decode(latent), space.decode(latent))):
        assert ours.dtype == torch.float32
        assert 0 < (ours - exact).abs().max() <= CLOSE[dtype] * exact.abs().max()


@HALVES
def test_lazy_vaes(dtype: torch.dtype) -> None:
    """Both halves of a lazy pass, a whole one first, against the same in single precision."""
    vae = diffusers_vae()
    latent, image = torch.randn(1, 4, 32, 32), torch.rand(1, 3, 128, 128)

    def passes(vae: LazyVAE) -> list[torch.Tensor]:
        edited, painted = latent.clone(), image.clone()
        edited[..., 8:12, 9:13] += 1
        painted[..., 32:40, 32:40] = 0
        first, base = vae.decode(latent), vae.encode(image)
        done = [first, vae.decode(edited, first.passes), base, vae.encode(painted, base.passes)]
        assert [each.planned is not None for each in done] == [False, True, False, True]
        return [each.output for each in done]

    for ours, exact in zip(passes(LazyVAE(deepcopy(vae).to(dtype))), passes(LazyVAE(vae)), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - exact).abs().mean() <= CLOSE[dtype] / 8 * exact.abs().max()


def test_eight_bits() -> None:
    """Hosts build a model in the number type that its weights will have."""

    class Operations:
        """Layers without values, as hosts make them."""

        class Linear(nn.Module):
            def __init__(self, inputs: int, outputs: int, dtype: torch.dtype | None = None):
                super().__init__()
                self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))

        class Conv2d(Linear):
            def __init__(self, inputs: int, outputs: int, *size: int, stride: int = 1, dtype: Any = None):
                super().__init__(inputs, outputs, dtype)

        LayerNorm = nn.LayerNorm

    decoder = LazyDecoder(PRESETS["small"], operations=Operations, dtype=torch.float8_e4m3fn)
    assert {p.dtype for p in decoder.parameters()} == {torch.float8_e4m3fn}
    tables = [block.scale_shift_table for block in decoder.blocks]
    assert all(0 < table.float().abs().mean() < 1 for table in tables)
