"""Core's Differential Diffusion on contexts: graded noise masks change each cell from a step of its own, lazily too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .in_process import Pack
from .test_model import Graph as Ours
from .test_own_pictures import picture
from .tiny_models import Edit

pytestmark = pytest.mark.host

STEPS = 6
CLOSE = 1e-5  # of fewer tokens in another order, relative to the largest value


def graded(hole: Tensor) -> Tensor:
    """A mask of cells that rises from left to right inside the hole, and is 0 outside."""
    columns = torch.linspace(0.1, 1, hole.shape[-1])
    return hole * columns


def sampled(pack: Pack, model: Any, latent: Tensor, mask: Tensor, prompts: tuple[Any, Any], cfg: float) -> Tensor:
    """By the host's nodes: the soft mask set, Differential Diffusion, KSampler."""
    pixels = F.interpolate(mask, scale_factor=8.0)[:, 0]
    (given,) = pack.call("SetLatentNoiseMask", {"samples": latent}, pixels)
    (soft,) = pack.call("DifferentialDiffusion", model)
    settings = 5, STEPS, cfg, "euler", "simple"
    return pack.call("KSampler", soft, *settings, *prompts, given, 1.0)[0]["samples"]


@pytest.mark.parametrize("name", ["flux", "sd3", "pixart-sigma"])
def test_with_an_anchor_at_every_step_it_is_the_plain_sampler(pack: Pack, name: str) -> None:
    edit = Edit(pack, name)
    mask = graded(edit.cells)
    plain = sampled(pack, edit.model, edit.canvas, mask, (edit.positive, edit.negative), 3.0)
    lazy = edit.attach(edit.context(anchors=STEPS))
    ours = sampled(pack, lazy, edit.canvas, mask, (edit.positive, edit.negative), 3.0)
    assert torch.equal(ours[edit.hole], plain[edit.hole])
    assert torch.equal(ours[~edit.hole], edit.canvas[~edit.hole])


@pytest.mark.parametrize("name", ["flux", "qwen-image", "pixart-sigma"])
def test_soft_masks_are_sampled_lazily(pack: Pack, name: str, sessions: list[Any]) -> None:
    """Outside every bit stays; inside, a soft mask is not a hard one."""
    edit = Edit(pack, name)
    mask = graded(edit.cells.reshape(1, 1, *edit.canvas.shape[-2:]))
    prompts = edit.positive, edit.negative
    lazy = edit.attach(edit.context(anchors=1))
    soft, hard = (sampled(pack, lazy, edit.canvas, each, prompts, 3.0) for each in (mask, (mask > 0).float()))
    assert all(session.recorded and session.replayed for session in sessions)
    assert torch.equal(soft[~edit.hole], edit.canvas[~edit.hole])
    change = [float((each - edit.canvas)[edit.hole].abs().mean()) for each in (soft, hard)]
    assert 0.01 < change[0] < 0.95 * change[1]


def test_soft_masks_with_our_own_model(pack: Pack) -> None:
    """Against the loop written out: Euler, of which each step moves the cells that are due."""
    ours = Ours(pack)
    image, mask = picture(96, 96, (24, 24, 48, 56))
    context, latent = pack.call("LazyContextEncode", ours.model, ours.vae, image, mask, 0, 0)
    (lazy,) = pack.call("LazyContextApply", ours.model, context)
    cells, canvas, prompts = graded(latent["noise_mask"]), latent["samples"], (ours.positive, ours.negative)
    soft = sampled(pack, lazy, canvas, cells, prompts, 1.0)
    outside = (latent["noise_mask"] == 0).expand_as(soft)
    assert torch.equal(soft[outside], canvas[outside])
    expected = by_steps(lazy, canvas, cells, prompts)
    torch.testing.assert_close(soft, expected, atol=CLOSE * float(expected.abs().max()), rtol=0)
    hard = sampled(pack, lazy, canvas, (cells > 0).float(), prompts, 1.0)
    assert (soft - hard).abs().max() > 0.1


@torch.inference_mode()
def by_steps(model: Any, canvas: Tensor, soft: Tensor, prompts: tuple[Any, Any]) -> Tensor:
    """A cell that is not due yet is the canvas, at the step's noise level as the model sees it."""
    import comfy.sample
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")

    def loop(denoise: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
        times = [float(sampling.timestep(sigma)) for sigma in (*sigmas[:-1], sampling.sigma_min)]
        known = denoise.latent_image
        for i in range(STEPS):
            due = soft >= (times[i] - times[-1]) / (times[0] - times[-1])
            noisy = sampling.noise_scaling(sigmas[i], denoise.noise, known)
            clean = denoise(torch.where(due, x, noisy), sigmas[i].expand(len(x)), **extra_args)
            x = x + (x - torch.where(due, clean, known)) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    noise = comfy.sample.prepare_noise(canvas, 5)
    return comfy.sample.sample_custom(
        model, noise, 1.0, comfy.samplers.KSAMPLER(loop), sigmas, *prompts, canvas, (soft > 0).float(),
        disable_pbar=True, seed=5,
    )  # fmt: skip
