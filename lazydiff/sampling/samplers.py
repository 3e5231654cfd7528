"""Samplers: from noise to clean hole tokens, by any model that can estimate the clean tokens at a noise level.

Every sampler is called as sample_x(model, x, sigmas, noise_sampler, callback) and returns clean tokens [B, n, C]:

model: called as model(z, sigma), a `Denoiser`
x: [B, n, C] noisy tokens at the first of the noise levels
sigmas: falling noise levels as in `schedules`; the model is asked at all of them but the last
noise_sampler: called without arguments for fresh noise [B, n, C], by samplers that add any
callback: called as callback(done, total, x̂) after each step; what it raises ends the sampling
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..model.config import SAMPLERS as SAMPLERS  # the names that `make_sampler` knows
from ..model.config import Sampling
from .flow import Network
from .iddpm import ALPHA_BARS, TIMESTEPS, TRAINED_STEPS, Posterior, posterior_table
from .schedules import flow_sigmas, iddpm_sigmas, scheduler_sigmas, vp_scale

Callback = Callable[[int, int, Tensor], None]
Model = Callable[[Tensor, Any], Tensor]  # called as model(z, sigma)
SampleFunction = Callable[..., Tensor]
FLOW_SAMPLERS = ("ancestral", "euler")  # the others go through the time steps of a diffusion
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # of diffusers
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


@dataclass(frozen=True)
class Denoiser:
    """A model as samplers see it: model(z, sigma) estimates x from z = (1 − sigma)·x + sigma·ε, all [B, n, C].

    predict: (z, sigma) -> the estimate of x, and of models that have learned one, the posterior's variance as the place
        v between its bounds (see `Posterior.log_variance`)
    """

    predict: Callable[[Tensor, float], tuple[Tensor, Tensor | None]]

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        return self.predict(z, sigma)[0]


def flow_denoiser(estimate: Network) -> Denoiser:
    """Denoiser of estimates on the flow path: estimate(z, sigma) -> x̂, see `predict_clean`."""

    def predict(z: Tensor, sigma: float) -> tuple[Tensor, None]:
        return estimate(z, z.new_full((1,), sigma)), None

    return Denoiser(predict)


def iddpm_denoiser(network: Network) -> Denoiser:
    """Denoiser of a network of noise and variance, asked at the trained time step of the nearest noise level."""
    alpha_bars = ALPHA_BARS.tolist()

    def predict(z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        scale = vp_scale(sigma)
        t = min(range(TIMESTEPS), key=lambda t: abs(alpha_bars[t] - ((1 - sigma) / scale) ** 2))
        x = z / scale
        epsilon, v = network(x, torch.full((1,), t, device=z.device)).float().chunk(2, dim=-1)
        # By the time step's own alpha, not the caller's: that may be 0, and the network's answer is about this level.
        return torch.sub(x, epsilon, alpha=float(TRAINED_STEPS[t].sigma)) / TRAINED_STEPS[t].alpha, v

    return Denoiser(predict)


def begin(noise: Tensor, sigma: float, start: Tensor | None = None) -> Tensor:
    """Noisy tokens at a noise level: pure noise, or a sketch's clean tokens made noisy."""
    if start is None:  # whose variance is that of the level
        return noise * vp_scale(sigma)
    return (1 - sigma) * start + sigma * noise


def euler_step(z: Tensor, x0: Tensor, sigma: float, lower: float) -> Tensor:
    """From z at one noise level to a lower one, by the estimate x̂ of the clean tokens and the noise that it implies."""
    epsilon = (z - (1 - sigma) * x0) / sigma
    return (1 - lower) * x0 + lower * epsilon


@torch.no_grad()
def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Sequence[float],
    noise_sampler: Callable[[], Tensor] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method on the flow path, which is DDIM without noise (Song et al. 2021)."""
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = model(x, sigma)
        x = euler_step(x, x0, sigma, lower)
        if callback is not None:
            callback(i + 1, len(sigmas) - 1, x0)
    return x


@torch.no_grad()
def sample_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Sequence[float],
    noise_sampler: Callable[[], Tensor],
    callback: Callback | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Down the flow path, where every step replaces all noise by fresh noise.

    temperature: standard deviation of the fresh noise. What is averaged away with the noise is lost, so that fresh
        noise lowers contrast; above 1 this returns some, below 1 it is finer in grain
    """
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        x0 = model(x, sigma)
        x = (1 - lower) * x0 + lower * (temperature * noise_sampler()) if lower > 0 else x0
        if callback is not None:
            callback(i + 1, len(sigmas) - 1, x0)
    return x


@torch.no_grad()
def sample_iddpm(
    model: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    noise_sampler: Callable[[], Tensor],
    callback: Callback | None = None,
) -> Tensor:
    """The paper's sampler (section 3.3): the ancestral chain of IDDPM with the variance that the model has learned.

    A model without one gets the smaller bound of it. Source: Nichol & Dhariwal, section 4.
    """
    alpha_bars = torch.tensor([((1 - sigma) / vp_scale(sigma)) ** 2 for sigma in sigmas[:-1]], dtype=torch.float64)
    chain = [Posterior(*row) for row in posterior_table(alpha_bars.flip(0)).tolist()][::-1]
    for i, (sigma, step) in enumerate(zip(sigmas[:-1], chain, strict=True)):
        x0, v = model.predict(x, sigma)
        x = step.mean(x0, x / vp_scale(sigma))
        lower = sigmas[i + 1]
        if lower > 0:
            v = -torch.ones_like(x) if v is None else v
            x = (x + (0.5 * step.log_variance(v)).exp() * noise_sampler()) * vp_scale(lower)
        if callback is not None:
            callback(i + 1, len(chain), x0)
    return x


@torch.no_grad()
def sample_scheduler(
    model: Model,
    x: Tensor,
    sigmas: Sequence[float],
    noise_sampler: Callable[[], Tensor] | None = None,
    callback: Callback | None = None,
    *,
    scheduler: Any,
) -> Tensor:
    """Steps as a scheduler of diffusers takes them.

    scheduler: of variance-preserving diffusion, whose time steps are set; sigmas: all of its levels, or the last ones
    """
    steps = len(sigmas) - 1
    weights = scheduler_weights(scheduler, steps).to(x)
    known = x.new_zeros(1 + steps, *x.shape)
    z = known[0] = x / vp_scale(sigmas[0])
    for i, sigma in enumerate(sigmas[:-1]):
        x0 = known[i + 1] = model(z * vp_scale(sigma), sigma)
        z = torch.tensordot(weights[i], known, dims=1)
        if callback is not None:
            callback(i + 1, steps, x0)
    return z


def scheduler_weights(scheduler: Any, steps: int) -> Tensor:
    """What the last `steps` steps of a scheduler add up, [steps, 1 + steps]: how much of the noisy tokens that they
    begin with, and of each step's estimate.

    They add nothing else, so that unit vectors on the CPU tell: on a GPU the scheduler would wait for its own tables.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(len(scheduler.timesteps) - steps)
    units = torch.eye(1 + steps)[:, None]
    z, rows = units[0], []
    for t, estimate in zip(scheduler.timesteps[len(scheduler.timesteps) - steps :], units[1:], strict=True):
        z = scheduler.step(estimate, t, z).prev_sample
        rows.append(z)
    return torch.cat([z[:0], *rows])


def diffusers_scheduler(name: str, steps: int) -> Any:
    """A scheduler of diffusers on the trained schedule, which predicts clean tokens; its tables stay on the CPU."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"the sampler {name} needs the package diffusers: pip install diffusers") from error
    kind, config = SCHEDULERS[name]
    schedule = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear", "prediction_type": "sample"}
    scheduler = getattr(diffusers, kind)(**schedule, **config)
    scheduler.set_timesteps(steps, device="cpu")
    return scheduler


def make_sampler(sampling: Sampling) -> tuple[SampleFunction, list[float]]:
    """The sampler of these settings, and the noise levels that it goes through.

    Errors: ValueError for a sampler that does not exist or settings out of range.
    """
    sampling.check()
    match sampling.sampler:
        case "iddpm":
            return sample_iddpm, iddpm_sigmas(sampling.steps)
        case "ancestral":
            sampler = partial(sample_ancestral, temperature=sampling.temperature)
            return sampler, flow_sigmas(sampling.steps, sampling.shift)
        case "euler":
            return sample_euler, flow_sigmas(sampling.steps)
    scheduler = diffusers_scheduler(sampling.sampler, sampling.steps)
    return partial(sample_scheduler, scheduler=scheduler), scheduler_sigmas(scheduler)
