"""Samplers, in a world of Gaussian pictures whose exact denoiser is known, and against plain loops."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lazydiff.core.tokens import HoleTokens
from lazydiff.sampling.flow import Network
from lazydiff.sampling.iddpm import ALPHA_BARS, posterior_table, respace
from lazydiff.sampling.noise import CanvasNoise
from lazydiff.sampling.samplers import (
    SAMPLERS,
    Denoiser,
    Sampler,
    ancestral,
    diffusers_sampler,
    euler,
    flow_denoiser,
    iddpm_denoiser,
)

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers and numpy
MEAN, DEVIATION = torch.tensor([0.0, 0.8, -1.5]), torch.tensor([1.0, 0.4, 0.6])
VARIANCE = DEVIATION**2


def full_hole(rows: int = 1, side: int = 4) -> HoleTokens:
    return HoleTokens.from_grid_mask(torch.ones(rows, side, side, dtype=torch.bool))


def draw(seed: int = 1, rows: int = 1, side: int = 4) -> CanvasNoise:
    return CanvasNoise(range(seed, seed + rows), full_hole(rows, side), len(MEAN))


# Exact models of pictures whose channels are N(MEAN, VARIANCE)


def flow_network(x: Tensor, t: Tensor) -> Tensor:
    """The Wiener estimate that the preconditioning makes by itself lacks only the mean."""
    sigma = (t / 1000)[:, None, None]
    return (MEAN * sigma / (VARIANCE * ((1 - sigma) ** 2 * VARIANCE + sigma**2)).sqrt()).expand_as(x)


def iddpm_network(steps: int) -> Network:
    """Exact noise, and for the chain of `steps` the exact variance of x_{t−1} given x_t."""
    timesteps = respace(steps)
    table = torch.zeros(1000, 6, dtype=torch.float64)
    table[timesteps] = posterior_table(timesteps)

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = ALPHA_BARS[t].float()[:, None, None]
        total = alpha_bar * VARIANCE + 1 - alpha_bar
        epsilon = (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * MEAN) / total
        _, _, clean, _, low, high = table[t].float().T[..., None, None]
        variance = low.exp() + clean**2 * VARIANCE * (1 - alpha_bar) / total
        return torch.cat((epsilon, (2 * (variance.log() - low) / (high - low) - 1).expand_as(epsilon)), dim=-1)

    return network


def model(kind: str, steps: int = 50) -> Denoiser:
    return flow_denoiser(flow_network, VARIANCE) if kind == "flow" else iddpm_denoiser(iddpm_network(steps))


def bent(z: Tensor, alpha: float, sigma: float) -> Tensor:
    """Some denoiser that is not linear."""
    return torch.tanh(2 * alpha * z / (alpha**2 + sigma**2)) + 0.1 * sigma


BENT = Denoiser(lambda z, alpha, sigma: (bent(z, alpha, sigma), None))


# Denoisers


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("alpha, sigma", [(0.3, 0.7), (0.6, 0.8), (1.0, 20.0), (1.0, 0.05), (0.0, 1.0)])
def test_denoiser_knows_the_posterior_mean_on_every_path(kind: str, alpha: float, sigma: float) -> None:
    """To rounding for flow; for IDDPM up to the distance of the nearest time step and the lowest noise it knows."""
    z = alpha * MEAN + (alpha * DEVIATION + sigma) * torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(5))
    expected = MEAN + alpha * VARIANCE * (z - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)
    tolerance = 1e-5 if kind == "flow" else 0.02
    torch.testing.assert_close(model(kind)(z, alpha, sigma), expected, rtol=0, atol=tolerance)


def test_iddpm_is_asked_at_the_trained_time_step() -> None:
    asked = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return torch.cat((x, x), dim=-1)

    denoise = iddpm_denoiser(network)
    for t in range(0, 1000, 37):
        alpha_bar = ALPHA_BARS[t].item()
        for scale in (1.0, 3.0):  # as the levels of one time step are on any path
            denoise(torch.ones(2, 1, 3), scale * math.sqrt(alpha_bar), scale * math.sqrt(1 - alpha_bar))
    assert asked == [[t] for t in range(0, 1000, 37) for _ in range(2)]


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
    mean, deviation = moments(SAMPLERS[name](model(kind, steps), draw(rows=4, side=64), steps))
    assert mean.abs().max() < MEAN_ERROR
    assert deviation.max() < 1 + DEVIATION_ERROR
    assert deviation.min() > 1 - DEVIATION_ERROR - lost


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("eta, temperature, shift", [(1, 1, 1), (0.5, 1, 3), (1, 1.3, 1), (0, 1, 1)])
def test_ancestral_has_the_moments_of_its_recursion(kind: str, eta: float, temperature: float, shift: float) -> None:
    """The denoiser is linear, so that mean and variance can be followed from step to step."""
    steps, mean, variance = 20, torch.zeros(3), torch.ones(3)
    ramp = [1 - i / steps for i in range(steps + 1)]
    sigmas = [shift * s / (1 + (shift - 1) * s) for s in ramp]
    for sigma, lower in zip(sigmas, sigmas[1:], strict=False):
        slope = (1 - sigma) * VARIANCE / ((1 - sigma) ** 2 * VARIANCE + sigma**2)
        estimate = MEAN + slope * (mean - (1 - sigma) * MEAN)
        keep = math.sqrt(1 - eta**2)
        factor = (1 - lower) * slope + lower * keep * (1 - (1 - sigma) * slope) / sigma
        mean = (1 - lower) * estimate + lower * keep * (mean - (1 - sigma) * estimate) / sigma
        variance = factor**2 * variance + (lower * eta * temperature) ** 2
    noise = draw(rows=4, side=64)
    x = ancestral(model(kind), noise, steps, eta=eta, temperature=temperature, shift=shift)
    torch.testing.assert_close(mean, MEAN, rtol=1e-5, atol=1e-5)
    expected = variance.sqrt() / DEVIATION
    error, deviation = moments(x)
    assert error.abs().max() < MEAN_ERROR
    assert ((deviation / expected - 1).abs() < DEVIATION_ERROR).all()


def test_ancestral_without_fresh_noise_is_euler() -> None:
    z, steps = draw().next(), 15
    for i in range(steps):
        sigma = 1 - i / steps
        z = z + (z - bent(z, 1 - sigma, sigma)) / sigma * (-1 / steps)
    # Rounding of 15 steps of another order of operations.
    torch.testing.assert_close(euler(BENT, draw(), steps), z, rtol=1e-5, atol=1e-5)


# Diffusers' schedulers

Scheduler = Callable[..., diffusers.SchedulerMixin]
FLOW_DPM = partial(diffusers.DPMSolverMultistepScheduler, use_flow_sigmas=True, prediction_type="flow_prediction")
SCHEDULERS: dict[str, Scheduler] = {
    "dpm sample": partial(diffusers.DPMSolverMultistepScheduler, prediction_type="sample"),
    "dpm v": partial(diffusers.DPMSolverMultistepScheduler, prediction_type="v_prediction"),
    "dpm karras": partial(diffusers.DPMSolverMultistepScheduler, use_karras_sigmas=True),
    "dpm flow": FLOW_DPM,
    "unipc": diffusers.UniPCMultistepScheduler,
    "ddim": partial(diffusers.DDIMScheduler, clip_sample=False, timestep_spacing="trailing"),
    "ddim v": partial(diffusers.DDIMScheduler, clip_sample=False, prediction_type="v_prediction"),
    "euler": diffusers.EulerDiscreteScheduler,
    "euler leading": partial(diffusers.EulerDiscreteScheduler, timestep_spacing="leading"),
    "euler v": partial(diffusers.EulerDiscreteScheduler, prediction_type="v_prediction"),
    "flow euler": partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0),
}


def network_output(kind: str, z: Tensor, alpha: float, sigma: float) -> Tensor:
    """What a network of a scheduler's prediction type says that estimates x as `bent` does."""
    x0 = bent(z, alpha, sigma)
    epsilon = (z - alpha * x0) / sigma
    velocity = alpha * epsilon - sigma * x0
    return {"epsilon": epsilon, "sample": x0, "v_prediction": velocity, "flow_prediction": epsilon - x0}[kind]


@pytest.mark.parametrize("strength", [None, 0.6])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_diffusers_sampler_is_the_plain_loop(name: str, strength: float | None) -> None:
    """The loop of a diffusers pipeline, image to image where there is a strength.

    To rounding: single precision tables, and estimates that go from x to the prediction and back.
    """
    scheduler, flow = SCHEDULERS[name](), "flow" in name
    scheduler.set_timesteps(12)
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    ratios = (1 / ALPHA_BARS - 1).sqrt()

    sketch = 0.5 * torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(8))
    heights = scheduler.timesteps / (1000 if flow else 999)
    first = 0 if strength is None else int((heights > strength).sum())
    noise, t = draw().next(), scheduler.timesteps[first : first + 1]
    if strength is None:
        z = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        z = scheduler.scale_noise(sketch, t, noise) if name == "flow euler" else scheduler.add_noise(sketch, noise, t)
    for i, t in enumerate(scheduler.timesteps):
        if i < first:
            continue
        if flow:
            sigma = float(scheduler.sigmas[i])
            alpha = 1 - sigma
        else:  # between time steps diffusers interpolates sigma / alpha, unless it spaces that itself
            ratio = float(scheduler.sigmas[i]) if "karras" in name else np.interp(t, np.arange(1000), ratios)
            alpha, sigma = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        scaled = scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
        z = scheduler.step(network_output(kind, scaled, alpha, sigma), t, z).prev_sample

    sampler = diffusers_sampler(SCHEDULERS[name]())
    result = sampler(BENT, draw(), 12) if strength is None else sampler(BENT, draw(), 12, sketch, strength)
    torch.testing.assert_close(result, z, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_noise_of_a_scheduler_follows_the_seeds(name: str) -> None:
    config = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") else {}
    results = []
    for seed, everything in ((1, 10), (1, 11), (2, 11)):
        torch.manual_seed(everything)
        results.append(diffusers_sampler(getattr(diffusers, name)(**config))(BENT, draw(seed), 8))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])


def test_sketch_where_a_scheduler_repeats_a_time_step() -> None:
    """Karras' levels lie so close at the end that two round to time step 1; both are stepped through, then 0."""
    done: list[tuple[int, int]] = []
    sampler = diffusers_sampler(SCHEDULERS["dpm karras"]())
    sampler(BENT, draw(), 100, torch.zeros(1, 16, 3), 0.0015, callback=lambda *step: done.append(step[:2]))
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_scheduler_of_several_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="HeunDiscreteScheduler"):
        diffusers_sampler(diffusers.HeunDiscreteScheduler())


def test_diffusers_is_imported_only_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # an import would fail
    monkeypatch.delitem(sys.modules, "lazydiff.diffusion.samplers")
    samplers = importlib.import_module("lazydiff.diffusion.samplers")
    samplers.SAMPLERS["euler"](BENT, draw(), 4)
    with pytest.raises(ImportError, match="pip install diffusers"):
        samplers.SAMPLERS["ddim"](BENT, draw(), 4)


# What all samplers promise

EVERY = [*SAMPLERS, "flow euler"]


def sampler_of(name: str) -> Sampler:
    return SAMPLERS[name] if name in SAMPLERS else diffusers_sampler(SCHEDULERS[name]())


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_result(name: str, kind: str) -> None:
    first, second, other = (sampler_of(name)(model(kind, 6), draw(seed), 6) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.isfinite().all() and not first.requires_grad


@pytest.mark.parametrize("name", EVERY)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    """With a model that does not mix tokens, rows of different length are what they are alone."""
    masks = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(6)) < 0.5
    hole = HoleTokens.from_grid_mask(masks)
    batch = sampler_of(name)(BENT, CanvasNoise([1, 2, 3], hole, 3), 6)
    for row in range(3):
        alone = sampler_of(name)(BENT, CanvasNoise([row + 1], HoleTokens.from_grid_mask(masks[row : row + 1]), 3), 6)
        torch.testing.assert_close(batch[row][hole.valid[row]], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.33])
@pytest.mark.parametrize("name", EVERY)
def test_sketch_starts_at_its_noise_level(name: str, strength: float) -> None:
    """The model first sees the sketch and the first noise, in the shares of the first level allowed."""
    asked: list[tuple[Tensor, float, float]] = []
    done = []

    def predict(z: Tensor, alpha: float, sigma: float) -> tuple[Tensor, None]:
        asked.append((z, alpha, sigma))
        return bent(z, alpha, sigma), None

    def height(alpha: float, sigma: float) -> float:
        if name in ("ancestral", "euler", "flow euler"):
            return sigma
        return (ALPHA_BARS - alpha**2).abs().argmin().item() / 999

    def sample(*start: Tensor | float) -> list[tuple[Tensor, float, float]]:
        asked.clear()
        done.clear()
        sampler_of(name)(Denoiser(predict), draw(), 10, *start, callback=lambda *step: done.append(step[:2]))
        return list(asked)

    everything = [level[1:] for level in sample()]
    sketch = torch.full((1, 16, 3), 0.7)
    some = sample(sketch, strength)
    allowed = [level for level in everything if height(*level) <= strength]
    assert [level[1:] for level in some] == allowed
    assert len(allowed) == 10 if strength == 1 else 2 <= len(allowed) < 10
    z, alpha, sigma = some[0]
    torch.testing.assert_close(z, alpha * sketch + sigma * draw().next(), rtol=1e-5, atol=1e-5)
    assert done == [(i + 1, len(allowed)) for i in range(len(allowed))]


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("name", EVERY)
def test_weak_sketching_returns_the_sketch(name: str, kind: str) -> None:
    """At strength 0.02 nothing is left to sample, or what noise of 0.08 can change (time steps up to 19 of 999)."""
    sketch = MEAN + DEVIATION * torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(7))
    result = sampler_of(name)(model(kind), draw(), 50, sketch, 0.02)
    assert (result - sketch).square().mean().sqrt() < (1 - ALPHA_BARS[19]).sqrt()


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.1])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        euler(BENT, draw(), 4, torch.zeros(1, 16, 3), strength)


@pytest.mark.parametrize("name", EVERY)
def test_callback_follows_and_can_cancel(name: str) -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int, x0: Tensor) -> None:
        steps.append((done, total))
        assert x0.shape == (1, 16, 3)
        if done == 3:
            raise Cancelled

    sampler, steps = sampler_of(name), []
    whole: list[tuple[int, int, Tensor]] = []
    expected = sampler(BENT, draw(), 6, callback=lambda *step: whole.append(step))
    assert [step[:2] for step in whole] == [(i, 6) for i in range(1, 7)]
    with pytest.raises(Cancelled):
        sampler(BENT, draw(), 6, callback=cancel)
    assert steps == [(1, 6), (2, 6), (3, 6)]
    assert torch.equal(sampler(BENT, draw(), 6), expected)  # nothing is left over from the cancelled run


class NoScalarReads(TorchDispatchMode):
    """Forbids what would make the host wait for a device: reading a number out of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor's value was read"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["flow", "iddpm"])
@pytest.mark.parametrize("name", ["iddpm", "ancestral", "euler"])
def test_sampling_reads_no_values(name: str, kind: str) -> None:
    denoise, noise = model(kind), draw()
    with NoScalarReads():
        SAMPLERS[name](denoise, noise, 5)
        with pytest.raises(AssertionError):
            noise.next().sum().item()
