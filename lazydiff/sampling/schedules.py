"""Schedules: the noise levels that a sampler goes through, from noise to picture.

A noise level sigma is the share of the noise, from 1 (noise) to 0 (picture): z = (1 − sigma)·x + sigma·ε, as on the
flow path. A variance-preserving diffusion has the same tokens up to the factor `vp_scale`, so that one convention
serves both. Every schedule falls and ends with 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .iddpm import ALPHA_BARS, TIMESTEPS, respace

SAME = 1e-5  # noise levels that differ by less are one: a scheduler's are rounded, and no two time steps are so near


def flow_sigmas(steps: int, shift: float = 1.0) -> list[float]:
    """Even steps on the flow path. shift: above 1, more of them at high levels (Esser et al. 2024, equation 23)

    Errors: ValueError for no steps, or a shift that is not above 0.
    """
    if not 1 <= steps or not 0 < shift < math.inf:
        raise ValueError(f"{steps} steps with a shift of {shift}: choose at least 1, and a shift above 0")
    ramp = [1 - i / steps for i in range(steps + 1)]
    return [shift * s / (1 + (shift - 1) * s) for s in ramp]


def iddpm_sigmas(steps: int) -> list[float]:
    """The respaced chain of IDDPM, both ends included (Nichol & Dhariwal, section 4)."""
    return [*(timestep_sigma(t) for t in reversed(respace(steps))), 0.0]


def scheduler_sigmas(scheduler: Any) -> list[float]:
    """What a scheduler of diffusers goes through, of variance-preserving diffusion, once its time steps are set."""
    if hasattr(scheduler, "sigmas"):  # of x + σ·ε
        ratios = scheduler.sigmas[: len(scheduler.timesteps)].tolist()
    else:
        alpha_bars = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        ratios = ((1 - alpha_bars) / alpha_bars).sqrt().tolist()
    return [*(ratio / (1 + ratio) for ratio in ratios), 0.0]


def vp_scale(sigma: float) -> float:
    """What a variance-preserving diffusion divides z by, so that its tokens keep their variance."""
    return math.hypot(1 - sigma, sigma)


def timestep_sigma(t: int) -> float:
    """The noise level of one of the 1000 trained time steps."""
    alpha_bar = float(ALPHA_BARS[t])
    return math.sqrt(1 - alpha_bar) / (math.sqrt(alpha_bar) + math.sqrt(1 - alpha_bar))


def from_strength(sigmas: Sequence[float], strength: float, diffusion: bool) -> list[float]:
    """The part of a schedule that changes a sketch by `strength`, in (0, 1] (SDEdit, Meng et al. 2022; paper, section
    4.5): it begins at the first level that is no higher, and is [0] alone below the last one.

    diffusion: the strength counts trained time steps; else it is a noise level
    Errors: ValueError for a strength out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is above 0 and at most 1, not {strength}")
    highest = timestep_sigma(math.floor(strength * (TIMESTEPS - 1) + SAME)) if diffusion else strength
    return [sigma for sigma in sigmas if sigma <= highest + SAME]
