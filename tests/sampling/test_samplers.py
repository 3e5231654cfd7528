"""Samplers, in a world of Gaussian pictures whose exact denoiser is known, and against plain loops."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import Sampling
from lazydiff.sampling.flow import Network, predict_clean
from lazydiff.sampling.iddpm import ALPHA_BARS, posterior_table, respace
from lazydiff.sampling.noise import CanvasNoise
from lazydiff.sampling.samplers import (
    FLOW_SAMPLERS,
    SAMPLERS,
    SCHEDULERS,
    Callback,
    Denoiser,
    begin,
    diffusers_scheduler,
    flow_denoiser,
    iddpm_denoiser,
    make_sampler,
)
from lazydiff.sampling.schedules import flow_sigmas, from_strength, timestep_sigma, vp_scale

MEAN, DEVIATION = torch.tensor([0.0, 0.8, -1.5]), torch.tensor([1.0, 0.4, 0.6])
VARIANCE = DEVIATION**2


def full_hole(rows: int = 1, side: int = 4) -> HoleTokens:
    return HoleTokens.from_grid_mask(torch.ones(rows, side, side, dtype=torch.bool))


def draw(seed: int = 1, rows: int = 1, side: int = 4) -> CanvasNoise:
    return CanvasNoise(range(seed, seed + rows), full_hole(rows, side), len(MEAN))


def run(
    sampling: Sampling, denoise: Denoiser, noise: CanvasNoise, callback: Callback | None = None,
    sketch: Tensor | None = None, strength: float = 1.0,
) -> Tensor:  # fmt: skip
    """A whole sampling, from noise or from a sketch."""
    sampler, sigmas = make_sampler(sampling)
    if sketch is not None:
        sigmas = from_strength(sigmas, strength, sampling.sampler not in FLOW_SAMPLERS)
    return sampler(denoise, begin(noise.next(), sigmas[0], sketch), sigmas, noise.next, callback)


# Exact models of pictures whose channels are N(MEAN, VARIANCE)


def flow_network(x: Tensor, t: Tensor) -> Tensor:
    """The Wiener estimate that the preconditioning makes by itself lacks only the mean."""
    sigma = (t / 1000)[:, None, None]
    return (MEAN * sigma / (VARIANCE * ((1 - sigma) ** 2 * VARIANCE + sigma**2)).sqrt()).expand_as(x)


def iddpm_network(steps: int) -> Network:
    """Exact noise, and for the chain of `steps` the exact variance of x_{t−1} given x_t."""
    timesteps = respace(steps)
    table = torch.zeros(1000, 6, dtype=torch.float64)
    table[timesteps] = posterior_table(ALPHA_BARS[timesteps])

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = ALPHA_BARS[t].float()[:, None, None]
        total = alpha_bar * VARIANCE + 1 - alpha_bar
        epsilon = (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * MEAN) / total
        _, _, clean, _, low, high = table[t].float().T[..., None, None]
        variance = low.exp() + clean**2 * VARIANCE * (1 - alpha_bar) / total
        return torch.cat((epsilon, (2 * (variance.log() - low) / (high - low) - 1).expand_as(epsilon)), dim=-1)

    return network


def wiener_network(x: Tensor, t: Tensor) -> Tensor:
    """Mean and variance of a quarter of what it is told of the channels: so many are expected, whatever x says."""
    mean, spread = MEAN / (2 * VARIANCE.sqrt()), torch.tensor(-2.0) * torch.tensor(2.0).log()
    return torch.cat([each.expand_as(x) for each in (mean, spread)], dim=-1)


def model(kind: str, steps: int = 50) -> Denoiser:
    if kind == "iddpm":
        return iddpm_denoiser(iddpm_network(steps))
    network, variance = (flow_network, VARIANCE) if kind == "flow" else (wiener_network, 4 * VARIANCE)
    return flow_denoiser(partial(predict_clean, network, variance=variance, prediction=kind))


def bent(z: Tensor, sigma: float) -> Tensor:
    """Some denoiser that is not linear."""
    return torch.tanh(2 * (1 - sigma) * z / ((1 - sigma) ** 2 + sigma**2)) + 0.1 * sigma


BENT = Denoiser(lambda z, sigma: (bent(z, sigma), None))


# Denoisers


@pytest.mark.parametrize("kind", ["flow", "wiener", "iddpm"])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.7, 0.95, 1.0])
def test_denoiser_knows_the_posterior_mean(kind: str, sigma: float) -> None:
    """To rounding on the flow path; for IDDPM up to the nearest time step's distance and the lowest noise it knows."""
    z = (1 - sigma) * MEAN + ((1 - sigma) * DEVIATION + sigma) * torch.randn(2, 50, 3)
    total = (1 - sigma) ** 2 * VARIANCE + sigma**2
    expected = MEAN + (1 - sigma) * VARIANCE * (z - (1 - sigma) * MEAN) / total
    torch.testing.assert_close(model(kind)(z, sigma), expected, rtol=0, atol=0.02 if kind == "iddpm" else 1e-5)


def test_iddpm_is_asked_at_the_trained_time_step() -> None:
    """With tokens as the diffusion has them: of the variance that they were trained with."""
    asked, given = [], []

    def network(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        given.append(x)
        return torch.cat((x, x), dim=-1)

    denoise, x, noise = iddpm_denoiser(network), *torch.randn(2, 2, 1, 3)
    for t in range(0, 1000, 37):
        sigma = timestep_sigma(t)
        denoise((1 - sigma) * x + sigma * noise, sigma)
        expected = ALPHA_BARS[t].sqrt().float() * x + (1 - ALPHA_BARS[t]).sqrt().float() * noise
        torch.testing.assert_close(given[-1], expected, rtol=1e-5, atol=1e-5)
    assert asked == [[t] for t in range(0, 1000, 37)]


# Samplers in the Gaussian world: what is lost of the deviation, at most, to finite steps. Methods of first order lose
# the most; IDDPM loses nothing where the variance is learned. `ancestral` is compared to its own theory below.
GAUSSIAN = [
    ("iddpm", "iddpm", 50, 0.0),
    ("iddpm", "flow", 100, 0.08),
    ("euler", "flow", 100, 0.03),
    ("euler", "iddpm", 100, 0.03),
    ("ddim", "flow", 100, 0.05),
    ("ddim", "iddpm", 100, 0.05),
    ("dpmpp", "flow", 50, 0.015),
    ("dpmpp", "iddpm", 50, 0.015),
    ("unipc", "flow", 50, 0.015),
    ("unipc", "iddpm", 50, 0.015),
]
VALUES = 4 * 64 * 64  # per channel: four standard errors are 0.031 deviations of the mean, 0.022 of the deviation
MEAN_ERROR, DEVIATION_ERROR = 4 / math.sqrt(VALUES), 4 / math.sqrt(2 * VALUES)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Error of the mean, and the deviation, in units of the true deviation."""
    return (x.mean((0, 1)) - MEAN) / DEVIATION, x.std((0, 1)) / DEVIATION


@pytest.mark.parametrize("name, kind, steps, lost", GAUSSIAN)
def test_sampler_recovers_the_distribution(name: str, kind: str, steps: int, lost: float) -> None:
    mean, deviation = moments(run(Sampling(name, steps), model(kind, steps), draw(rows=4, side=64)))
    assert mean.abs().max() < MEAN_ERROR
    assert deviation.max() < 1 + DEVIATION_ERROR
    assert deviation.min() > 1 - DEVIATION_ERROR - lost


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("temperature, shift", [(1, 1), (1, 3), (1.3, 1)])
def test_ancestral_has_the_moments_of_its_recursion(kind: str, temperature: float, shift: float) -> None:
    """The denoiser is linear, so that mean and variance can be followed from step to step."""
    steps, mean, variance = 20, torch.zeros(3), torch.ones(3)
    for sigma, lower in pairwise(flow_sigmas(steps, shift)):
        slope = (1 - sigma) * VARIANCE / ((1 - sigma) ** 2 * VARIANCE + sigma**2)
        mean = (1 - lower) * (MEAN + slope * (mean - (1 - sigma) * MEAN))
        variance = ((1 - lower) * slope) ** 2 * variance + (lower * temperature) ** 2
    sampling = Sampling("ancestral", steps, temperature=temperature, shift=shift)
    x = run(sampling, model(kind), draw(rows=4, side=64))
    torch.testing.assert_close(mean, MEAN, rtol=1e-5, atol=1e-5)
    error, deviation = moments(x)
    assert error.abs().max() < MEAN_ERROR
    assert ((deviation / (variance.sqrt() / DEVIATION) - 1).abs() < DEVIATION_ERROR).all()


def test_ancestral_is_the_plain_loop() -> None:
    """Fresh noise of the canvas at every step but the last, which ends at the estimate."""
    noise, steps = draw(), 7
    z = noise.next()
    for i in range(steps):
        x0, lower = bent(z, 1 - i / steps), 1 - (i + 1) / steps
        z = x0 if i == steps - 1 else (1 - lower) * x0 + lower * 1.2 * noise.next()
    # Rounding of another order of operations.
    result = run(Sampling("ancestral", steps, temperature=1.2), BENT, draw())
    torch.testing.assert_close(result, z, rtol=1e-5, atol=1e-5)


def test_euler_is_the_plain_loop() -> None:
    z, steps = draw().next(), 15
    for i in range(steps):
        sigma = 1 - i / steps
        z = z + (z - bent(z, sigma)) / sigma * (-1 / steps)
    # Rounding of 15 steps of another order of operations.
    torch.testing.assert_close(run(Sampling("euler", steps), BENT, draw()), z, rtol=1e-5, atol=1e-5)


# Diffusers' schedulers


@pytest.mark.parametrize("strength", [None, 0.6])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_diffusers_is_the_plain_loop(name: str, strength: float | None) -> None:
    """The loop of a diffusers pipeline, image to image where there is a strength.

    To rounding: single precision tables, and tokens that are scaled to and fro.
    """
    scheduler = diffusers_scheduler(name, 12)
    ratios = (1 / ALPHA_BARS - 1).sqrt()

    sketch = 0.5 * torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(8))
    first = 0 if strength is None else int((scheduler.timesteps / 999 > strength).sum())
    noise, t = draw().next(), scheduler.timesteps[first : first + 1]
    z = noise * scheduler.init_noise_sigma if strength is None else scheduler.add_noise(sketch, noise, t)
    for t in scheduler.timesteps[first:]:
        ratio = np.interp(t, np.arange(1000), ratios)  # sigma / alpha of the diffusion
        alpha, sigma = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        x0 = bent(z / (alpha + sigma), sigma / (alpha + sigma))  # on the path from 1 to 0, shares add up to 1
        z = scheduler.step(x0, t, z).prev_sample

    start = {} if strength is None else {"sketch": sketch, "strength": strength}
    torch.testing.assert_close(run(Sampling(name, 12), BENT, draw(), **start), z, rtol=0, atol=2e-4)


def test_diffusers_is_imported_only_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # an import would fail
    run(Sampling("euler", 4), BENT, draw())
    with pytest.raises(ImportError, match="pip install diffusers"):
        make_sampler(Sampling("ddim", 4))


# What all samplers promise


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_same_seed_same_result(name: str, kind: str) -> None:
    first, second, other = (run(Sampling(name, 6), model(kind, 6), draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.isfinite().all() and not first.requires_grad


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    """With a model that does not mix tokens, rows of different length are what they are alone."""
    masks = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(6)) < 0.5
    hole, sampling = HoleTokens.from_grid_mask(masks), Sampling(name, 6)
    batch = run(sampling, BENT, CanvasNoise([1, 2, 3], hole, 3))
    for row in range(3):
        alone = run(sampling, BENT, CanvasNoise([row + 1], HoleTokens.from_grid_mask(masks[row : row + 1]), 3))
        torch.testing.assert_close(batch[row][hole.valid[row]], alone[0], rtol=1e-5, atol=1e-5)


def asked(name: str, **start: Tensor | float) -> list[tuple[Tensor, float]]:
    """The calls of a model in ten steps."""
    calls: list[tuple[Tensor, float]] = []

    def predict(z: Tensor, sigma: float) -> tuple[Tensor, None]:
        calls.append((z, sigma))
        return bent(z, sigma), None

    run(Sampling(name, 10), Denoiser(predict), draw(), **start)  # type: ignore[arg-type]
    return calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_model_is_asked_at_all_levels_of_the_schedule_but_the_last(name: str) -> None:
    _, sigmas = make_sampler(Sampling(name, 10))
    calls = asked(name)
    assert [sigma for _, sigma in calls] == sigmas[:-1]
    # Pure noise, of the variance that tokens have at the first level: all of it, or the share of the first time step.
    torch.testing.assert_close(calls[0][0], draw().next() * vp_scale(sigmas[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.33])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sketch_starts_at_its_noise_level(name: str, strength: float) -> None:
    """The model first sees the sketch and the first noise, in the shares of the first level allowed."""
    sketch = torch.full((1, 16, 3), 0.7)
    calls = asked(name, sketch=sketch, strength=strength)
    z, sigma = calls[0]
    assert len(calls) == 10 if strength == 1 else 2 <= len(calls) < 10
    torch.testing.assert_close(z, (1 - sigma) * sketch + sigma * draw().next(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_weak_sketching_returns_the_sketch(name: str, kind: str) -> None:
    """At strength 0.02 nothing is left to sample, or what noise of 0.08 can change (time steps up to 19 of 999)."""
    sketch = MEAN + DEVIATION * torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(7))
    result = run(Sampling(name, 50), model(kind), draw(), sketch=sketch, strength=0.02)
    assert (result - sketch).square().mean().sqrt() < (1 - ALPHA_BARS[19]).sqrt()


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_follows_and_can_cancel(name: str) -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int, x0: Tensor) -> None:
        steps.append((done, total))
        assert x0.shape == (1, 16, 3)
        if done == 3:
            raise Cancelled

    sampling, steps = Sampling(name, 6), []
    whole: list[tuple[int, int, Tensor]] = []
    expected = run(sampling, BENT, draw(), lambda *step: whole.append(step))
    assert [step[:2] for step in whole] == [(i, 6) for i in range(1, 7)]
    with pytest.raises(Cancelled):
        run(sampling, BENT, draw(), cancel)
    assert steps == [(1, 6), (2, 6), (3, 6)]
    assert torch.equal(run(sampling, BENT, draw()), expected)  # nothing is left over from the cancelled run


class NoScalarReads(TorchDispatchMode):
    """Forbids what would make the host wait for a device: reading a number out of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor's value was read"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("name", ["iddpm", "ancestral", "euler"])
def test_sampling_reads_no_values(name: str, kind: str) -> None:
    sampler, sigmas = make_sampler(Sampling(name, 5))
    denoise, noise = model(kind), draw()
    x = begin(noise.next(), sigmas[0])
    with NoScalarReads():
        sampler(denoise, x, sigmas, noise.next)
        with pytest.raises(AssertionError):
            noise.next().sum().item()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "magic"}, "no sampler called magic: choose iddpm, ancestral, euler, dpmpp, ddim, unipc"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 1001}, "1001 steps"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"shift": 0.0}, "shift is 0.0"),
        ({"temperature": math.inf}, "temperature is inf"),
    ],
)
def test_settings_out_of_range_are_told(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(replace(Sampling("euler"), **changes))  # type: ignore[arg-type]
