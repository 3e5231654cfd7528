"""Samplers: from noise to clean hole tokens, by any model that can estimate the clean tokens at a noise level.

Every sampler is called as sample(denoise, noise, steps, start, strength, callback) and returns clean tokens [B, n, C]:

denoise: the model
noise: the seeds' noise at the hole
start, strength: clean tokens [B, n, C] of a sketch, and how far it may be changed, in (0, 1]: sampling begins at the
    first noise level that is no higher than `strength` (SDEdit, Meng et al. 2022; paper, section 4.5). Below the last
    level the sketch is returned as it is.
callback: called as callback(done, total, x̂) after each step; what it raises ends the sampling
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .flow import Network, predict_clean
from .iddpm import ALPHA_BARS, TIMESTEPS, TRAINED, Posterior, posterior_table, respace
from .noise import CanvasNoise

Callback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Denoiser:
    """A model as samplers see it: denoise(z, alpha, sigma) estimates x from z = alpha·x + sigma·ε, all [B, n, C].

    predict: (z, alpha, sigma) -> the estimate of x, and of models that have learned one, the posterior's variance as
        the place v between its bounds (see `Posterior.log_variance`)
    """

    predict: Callable[[Tensor, float, float], tuple[Tensor, Tensor | None]]

    def __call__(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        return self.predict(z, alpha, sigma)[0]


class Sampler(Protocol):
    def __call__(
        self,
        denoise: Denoiser,
        noise: CanvasNoise,
        steps: int,
        start: Tensor | None = None,
        strength: float = 1.0,
        callback: Callback | None = None,
    ) -> Tensor: ...


# Models


def flow_denoiser(network: Network, variance: Tensor) -> Denoiser:
    """Denoiser of a flow network; `variance` [C] is that of the clean tokens' channels."""

    def predict(z: Tensor, alpha: float, sigma: float) -> tuple[Tensor, None]:
        total = alpha + sigma  # 1 on the flow path, which has the same z up to this factor
        return predict_clean(network, z / total, z.new_full((1,), sigma / total), variance), None

    return Denoiser(predict)


def iddpm_denoiser(network: Network) -> Denoiser:
    """Denoiser of a network of noise and variance, asked at the trained time step of the nearest noise level."""
    alpha_bars = ALPHA_BARS.tolist()
    steps = [Posterior(*row) for row in TRAINED.tolist()]

    def predict(z: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        scale = math.hypot(alpha, sigma)  # 1 on the variance-preserving path
        t = min(range(TIMESTEPS), key=lambda t: abs(alpha_bars[t] - (alpha / scale) ** 2))
        x = z / scale
        epsilon, v = network(x, torch.full((1,), t, device=z.device)).float().chunk(2, dim=-1)
        # By the time step's own alpha, not the caller's: that may be 0, and the network's answer is about this level.
        return (x - steps[t].sigma * epsilon) / steps[t].alpha, v

    return Denoiser(predict)


# Where sampling begins


class Level(NamedTuple):
    """A place on the way from noise to picture, where z = alpha·x + sigma·ε."""

    height: float  # from 1 (noise) to 0 (picture): what a sketch's strength is compared to
    alpha: float
    sigma: float


PICTURE = Level(0.0, 1.0, 0.0)


def begin(path: Sequence[Level], noise: CanvasNoise, start: Tensor | None, strength: float) -> tuple[int, Tensor]:
    """The first place on the path to sample from, and the noisy tokens there: pure noise, or a sketch made noisy."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength is above 0 and at most 1, not {strength}")
    if start is None:
        return 0, noise.next()
    first = next(i for i, level in enumerate(path) if level.height <= strength)
    return first, path[first].alpha * start + path[first].sigma * noise.next()


# Samplers


@torch.no_grad()
def iddpm_sample(
    denoise: Denoiser,
    noise: CanvasNoise,
    steps: int = 50,
    start: Tensor | None = None,
    strength: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """The paper's sampler: the respaced ancestral chain of IDDPM with the variance that the model has learned.

    A model without one gets the smaller bound of it. Source: Nichol & Dhariwal, section 4.
    """
    timesteps = respace(steps)
    rows = posterior_table(timesteps).tolist()
    path = [Level(t / (TIMESTEPS - 1), *row[:2]) for t, row in zip(timesteps, rows, strict=True)][::-1]
    chain = [Posterior(*row) for row in rows][::-1]
    first, x = begin([*path, PICTURE], noise, start, strength)
    for i in range(first, steps):
        step = chain[i]
        x0, v = denoise.predict(x, path[i].alpha, path[i].sigma)
        x = step.mean(x0, x)
        if i < steps - 1:
            v = -torch.ones_like(x) if v is None else v
            x = x + (0.5 * step.log_variance(v)).exp() * noise.next()
        if callback is not None:
            callback(i + 1 - first, steps - first, x0)
    return x


@torch.no_grad()
def ancestral(
    denoise: Denoiser,
    noise: CanvasNoise,
    steps: int,
    start: Tensor | None = None,
    strength: float = 1.0,
    callback: Callback | None = None,
    eta: float = 1.0,
    temperature: float = 1.0,
    shift: float = 1.0,
) -> Tensor:
    """Down the flow path, where each step replaces a share of the noise by fresh noise.

    eta: that share, from 0 (none: Euler's method) to 1 (all)
    temperature: standard deviation of the fresh noise. What is averaged away with the noise is lost, so that a high
        `eta` lowers contrast; above 1 this returns some
    shift: above 1, more of the steps lie at high noise levels (Esser et al. 2024, equation 23)
    """
    ramp = [1 - i / steps for i in range(steps + 1)]
    sigmas = [shift * s / (1 + (shift - 1) * s) for s in ramp]
    first, z = begin([Level(s, 1 - s, s) for s in sigmas], noise, start, strength)
    for i in range(first, steps):
        sigma, lower = sigmas[i], sigmas[i + 1]
        x0 = denoise(z, 1 - sigma, sigma)
        epsilon = (z - (1 - sigma) * x0) / sigma
        if eta > 0:
            epsilon = math.sqrt(1 - eta**2) * epsilon + eta * temperature * noise.next()
        z = (1 - lower) * x0 + lower * epsilon
        if callback is not None:
            callback(i + 1 - first, steps - first, x0)
    return z


euler: Sampler = partial(ancestral, eta=0.0)


def diffusers_sampler(scheduler: Any) -> Sampler:
    """The sampler that steps as a scheduler of diffusers does, one of variance-preserving diffusion or of flow.

    Schedulers that add noise of their own draw it by the rows' seeds, but at the hole alone: it depends on the mask.
    Raises ValueError for schedulers that call the model more than once in a step (`order` above 1).
    """
    if scheduler.order != 1:
        raise ValueError(f"{type(scheduler).__name__} calls the model more than once in a step: choose another")
    prediction = scheduler.config.get("prediction_type", "flow_prediction")
    seeded = "generator" in inspect.signature(scheduler.step).parameters
    scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)

    @torch.no_grad()
    def sample(
        denoise: Denoiser,
        noise: CanvasNoise,
        steps: int,
        start: Tensor | None = None,
        strength: float = 1.0,
        callback: Callback | None = None,
    ) -> Tensor:
        scheduler.set_timesteps(steps, device="cpu")  # whatever the tokens are on: its tables are read on the host
        path = scheduler_path(scheduler)
        first, z = begin([*path, PICTURE], noise, start, strength)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        path, timesteps = path[first:], scheduler.timesteps[first:]
        if start is None:
            z = z * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else z
        elif path:
            z = z / scale(torch.ones(()), timesteps[0])
        extra = {"generator": noise.generators} if seeded else {}
        for i, (t, level) in enumerate(zip(timesteps, path, strict=True)):
            scaled = scale(z, t)
            x0 = denoise(scaled, level.alpha, level.sigma)
            z = scheduler.step(as_prediction(prediction, x0, scaled, level), t, z, **extra).prev_sample
            if callback is not None:
                callback(i + 1, len(path), x0)
        return z

    return sample


def scheduler_path(scheduler: Any) -> list[Level]:
    """What the model's scaled input is made of at each step of a diffusers scheduler."""
    config, timesteps = scheduler.config, scheduler.timesteps.tolist()
    if config.get("use_flow_sigmas", "prediction_type" not in config):  # the flow schedulers name no prediction
        return [Level(sigma, 1 - sigma, sigma) for sigma in scheduler.sigmas[: len(timesteps)].tolist()]
    if hasattr(scheduler, "sigmas"):  # of x + σ·ε
        ratios = scheduler.sigmas[: len(timesteps)].tolist()
    else:
        alpha_bars = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        ratios = ((1 - alpha_bars) / alpha_bars).sqrt().tolist()
    last = config.num_train_timesteps - 1
    levels = zip(timesteps, ratios, strict=True)
    return [Level(t / last, 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)) for t, ratio in levels]


def as_prediction(kind: str, x0: Tensor, z: Tensor, level: Level) -> Tensor:
    """The estimate of the clean tokens in the form that a scheduler expects from its model."""
    epsilon = (z - level.alpha * x0) / level.sigma
    match kind:
        case "sample":
            return x0
        case "epsilon":
            return epsilon
        case "v_prediction":
            return level.alpha * epsilon - level.sigma * x0
        case "flow_prediction":
            return epsilon - x0
    raise ValueError(f"unknown prediction type {kind!r}")


def named_scheduler(name: str, **config: Any) -> Sampler:
    """The sampler of a diffusers scheduler on the trained schedule; diffusers is imported when it is first used."""

    def sample(denoise: Denoiser, noise: CanvasNoise, steps: int, *args: Any, **kwargs: Any) -> Tensor:
        try:
            import diffusers
        except ImportError as error:
            raise ImportError("this sampler needs the package diffusers: pip install diffusers") from error
        schedule = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear", "prediction_type": "sample"}
        scheduler = getattr(diffusers, name)(**schedule, **config)
        return diffusers_sampler(scheduler)(denoise, noise, steps, *args, **kwargs)

    return sample


SAMPLERS: dict[str, Sampler] = {
    "iddpm": iddpm_sample,
    "ancestral": ancestral,
    "euler": euler,
    "dpmpp": named_scheduler("DPMSolverMultistepScheduler"),
    "ddim": named_scheduler("DDIMScheduler", clip_sample=False, timestep_spacing="trailing"),
    "unipc": named_scheduler("UniPCMultistepScheduler"),
}
