"""Launches, waits and copies are as few as they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_vaes import diffusers_vae

from benchmarks import launches
from benchmarks.pretended_gpu import PretendedGPU
from lazydiff.core.masks import guided_filter
from lazydiff.sampling.samplers import SAMPLERS
from lazydiff.vae import lazy_vae
from lazydiff.vae.canvas_vae import LazyVAE

REPORT = Path(__file__).parents[2] / "docs" / "launches.json"


def test_a_guided_step_of_pixart(gpu: PretendedGPU) -> None:
    per_block, fixed = launches.decoder_launches(gpu)
    assert per_block <= 16 and fixed <= 40
    assert not gpu.waits and not gpu.copies
    figures = json.loads(REPORT.read_text("utf-8"))["figures"]
    assert (figures["launches_per_block"], figures["launches_fixed"]) == (per_block, fixed)


def test_holes_of_two_sizes(gpu: PretendedGPU) -> None:
    """Each size is attended to by itself."""
    per_block, fixed = launches.decoder_launches(gpu, (launches.TOKENS, launches.TOKENS - 40))
    assert per_block <= 16 + 6 and fixed <= 45
    assert not gpu.waits and not gpu.copies


def test_rotary_positions(gpu: PretendedGPU) -> None:
    """Four to turn queries and keys together, and a copy of what attention answers in their order."""
    per_block, fixed = launches.decoder_launches(gpu, rotary=True)
    assert per_block <= 16 + 5 and fixed <= 40
    assert not gpu.waits and not gpu.copies


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_step_waits(gpu: PretendedGPU, sampler: str) -> None:
    assert not launches.step_waits(gpu, sampler)


def test_blending_waits_once_and_masks_never(gpu: PretendedGPU) -> None:
    image, mask = torch.rand(1, 3, 64, 64).to("cuda"), torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 20:40] = 1
    mask = mask.to("cuda")
    gpu.count(lambda: launches.poisson_blend(image, 1 - image, mask))
    assert gpu.waits.total() == 1 and not gpu.copies
    for each in (launches.grow, launches.feather, lambda mask, radius: guided_filter(mask, image, radius)):
        gpu.count(lambda each=each: each(mask, 3))
        assert not gpu.waits and not gpu.copies


def test_a_lazy_decode(gpu: PretendedGPU) -> None:
    """It reads where its mask lies, and no more; launches are as many as plans take them for."""
    vae, latent = diffusers_vae().to("cuda"), torch.randn(1, 4, 32, 32).to("cuda")
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 80:112, 80:112] = 1
    mask = mask.to("cuda")
    state = lazy_vae.full_decode(vae, latent)
    norms = len(state.statistics)
    full = gpu.count(lambda: lazy_vae.full_decode(vae, latent)).total()
    assert full <= 3 * gpu.count(lambda: vae.decode(latent)).total()
    assert full == pytest.approx(norms * lazy_vae.LAUNCHES_FULL, rel=0.2)
    lazy = gpu.count(lambda: lazy_vae.lazy_decode(vae, latent, state, mask, limit=float("inf"))).total()
    assert gpu.waits.total() == 1 and not gpu.copies
    assert lazy == pytest.approx(norms * (lazy_vae.LAUNCHES_LAZY + 2 * lazy_vae.LAUNCHES_BOX), rel=0.2)


def test_a_small_picture_is_decoded_in_full(gpu: PretendedGPU) -> None:
    """On a GPU, where starting a lazy pass's many kernels takes longer; on a CPU it is lazy."""
    latent = torch.randn(1, 4, 32, 32)
    edited = latent.clone()
    edited[..., 4:6, 4:6] += 1
    shares = {}
    for device in ("cpu", "cuda"):
        vae = LazyVAE(diffusers_vae().to(device))
        shares[device] = vae.decode(edited, vae.decode(latent).passes).share
    assert shares["cpu"] < lazy_vae.LIMIT and shares["cuda"] == 1
