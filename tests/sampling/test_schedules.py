"""Schedules: the levels that samplers have always gone through, without running one."""

from __future__ import annotations

import math

import pytest

from lazydiff.model.config import Sampling
from lazydiff.sampling.iddpm import ALPHA_BARS, respace
from lazydiff.sampling.samplers import FLOW_SAMPLERS, SAMPLERS, SCHEDULERS, diffusers_scheduler, make_sampler
from lazydiff.sampling.schedules import flow_sigmas, from_strength, iddpm_sigmas, scheduler_sigmas, timestep_sigma

# Of four steps, as the samplers of the first version were seen to ask for them; how many are left at strength 0.6.
FOUR = {
    "iddpm": ([0.993687159, 0.904661302, 0.593884996, 0.009901480], 2),
    "ancestral": ([1.0, 0.75, 0.5, 0.25], 2),
    "euler": ([1.0, 0.75, 0.5, 0.25], 2),
    "dpmpp": ([0.993687159, 0.945196418, 0.774925201, 0.489283602], 2),
    "ddim": ([0.993687158, 0.945196419, 0.773967208, 0.487950334], 2),
    "unipc": ([0.993687159, 0.945196418, 0.774925201, 0.489283602], 2),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_are_those_of_the_first_version(name: str) -> None:
    """Saved gates and contexts know a sampling by them. Tolerance: they are written here with nine digits."""
    levels, left = FOUR[name]
    _, sigmas = make_sampler(Sampling(name, steps=4))
    assert sigmas == pytest.approx([*levels, 0.0], rel=0, abs=1e-9)
    assert from_strength(sigmas, 0.6, name not in FLOW_SAMPLERS) == sigmas[4 - left :]


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 500])
@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_fall_to_the_picture(name: str, steps: int) -> None:
    _, sigmas = make_sampler(Sampling(name, steps))
    assert len(sigmas) == steps + 1 and sigmas[0] <= 1 and sigmas[-1] == 0
    assert all(above > below for above, below in zip(sigmas, sigmas[1:], strict=False))


def test_a_shift_spends_more_steps_at_high_noise() -> None:
    """t' = m·t / (1 + (m − 1)·t): of Esser et al., equation 23."""
    assert flow_sigmas(4, shift=3.0) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert flow_sigmas(3) == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_a_level_is_the_noises_share(t: int) -> None:
    """Of √ᾱ·x + √(1 − ᾱ)·ε, divided by the sum of both factors."""
    signal, noise = math.sqrt(ALPHA_BARS[t]), math.sqrt(1 - ALPHA_BARS[t])
    assert timestep_sigma(t) == pytest.approx(noise / (signal + noise))


# Sketches


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50, 100, 200])
def test_a_strength_counts_time_steps_of_a_diffusion(steps: int) -> None:
    """As the time steps say themselves, with a strength that meets one of them exactly, and with any other."""
    chains = {"iddpm": (respace(steps)[::-1], iddpm_sigmas(steps))}
    for name in SCHEDULERS:
        scheduler = diffusers_scheduler(name, steps)
        chains[name] = scheduler.timesteps.tolist(), scheduler_sigmas(scheduler)
    for name, (timesteps, sigmas) in chains.items():
        for t in (t for t in timesteps if t):
            left = [sigma for sigma, other in zip(sigmas, timesteps, strict=False) if other <= t]
            assert from_strength(sigmas, t / 999, True) == [*left, 0.0], (name, t)
        for strength in (0.001, 0.2503, 0.5, 0.501, 0.75, 0.9991, 1.0):
            left = [sigma for sigma, t in zip(sigmas, timesteps, strict=False) if t / 999 <= strength]
            assert from_strength(sigmas, strength, True) == [*left, 0.0], (name, strength)


def test_a_strength_is_a_level_of_the_flow_path() -> None:
    sigmas = flow_sigmas(10)
    assert from_strength(sigmas, 1.0, False) == sigmas
    assert from_strength(sigmas, 0.3, False) == sigmas[7:]  # 0.3, which 1 − 7/10 misses by a rounding error
    assert from_strength(sigmas, 0.29, False) == sigmas[8:]
    assert from_strength(sigmas, 0.05, False) == [0.0]


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.1, math.nan])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match="strength is above 0 and at most 1"):
        from_strength([1.0, 0.0], strength, False)
