"""Improved DDPM (Nichol & Dhariwal 2021): prediction of the noise and of the variance, in 1000 discrete time steps.

Time runs from 0 (picture) to 999 (noise): x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from .flow import Network

TIMESTEPS = 1000
BETAS = torch.linspace(1e-4, 2e-2, TIMESTEPS, dtype=torch.float64)
ALPHA_BARS = (1 - BETAS).cumprod(0)


def respace(steps: int) -> list[int]:
    """The time steps, rising, of a chain of `steps` of the 1000: evenly spaced, both ends included."""
    if not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"a chain has 1 to {TIMESTEPS} steps, not {steps}")
    last = TIMESTEPS - 1
    return [last] if steps == 1 else [round(i * last / (steps - 1)) for i in range(steps)]


class Posterior(NamedTuple):
    """One step of the chain, q(x_{t−1} | x_t, x_0): numbers, or [B, 1, 1] where each row has a time step of its own."""

    alpha: float | Tensor  # √ᾱ_t
    sigma: float | Tensor  # √(1 − ᾱ_t)
    clean: float | Tensor  # the mean's weight of x_0
    noisy: float | Tensor  # the mean's weight of x_t
    low: float | Tensor  # log β̃_t, the smaller bound of the variance
    high: float | Tensor  # log β_t, the larger one

    def mean(self, x0: Tensor, xt: Tensor) -> Tensor:
        return self.clean * x0 + self.noisy * xt

    def log_variance(self, v: Tensor) -> Tensor:
        """v: −1 for the smaller bound, 1 for the larger one"""
        share = (v + 1) / 2
        return share * self.high + (1 - share) * self.low


def posterior_table(alpha_bar: Tensor) -> Tensor:
    """The columns of `Posterior` for the chain that visits only these noise levels, [K, 6] in double precision.

    alpha_bar: [K], falling: time steps in rising order
    Source: Nichol & Dhariwal, section 4 and equations 10, 11, 15.
    """
    previous = torch.cat((torch.ones(1, dtype=torch.float64), alpha_bar[:-1]))
    beta = 1 - alpha_bar / previous
    variance = beta * (1 - previous) / (1 - alpha_bar)
    variance[0] = variance[min(1, len(variance) - 1)]  # it is 0, which has no logarithm
    clean = previous.sqrt() * beta / (1 - alpha_bar)
    noisy = (1 - beta).sqrt() * (1 - previous) / (1 - alpha_bar)
    return torch.stack((alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), clean, noisy, variance.log(), beta.log()), dim=1)


TRAINED = posterior_table(ALPHA_BARS)
TRAINED_STEPS = [Posterior(*row) for row in TRAINED.tolist()]


def iddpm_loss(network: Network, x: Tensor, noise: Tensor, t: Tensor, valid: Tensor) -> Tensor:
    """Hybrid loss ‖ε̂ − ε‖² + L_vb, averaged over each row's valid tokens, then over rows.

    The bound trains the variance only. It is one term of T, so its weight of 1 is their λ = 0.001 on the sum.

    network: (x_t [B, n, C], t [B]) -> [B, n, 2C], noise before variance
    x, noise: [B, n, C]; t: [B] int64 in 0..999; valid: [B, n] bool
    Source: Nichol & Dhariwal, equation 16.
    """
    step = Posterior(*rearrange(TRAINED.float().to(x.device)[t], "b column -> column b 1 1"))
    xt = step.alpha * x + step.sigma * noise
    epsilon, v = network(xt, t).float().chunk(2, dim=-1)
    error = (epsilon - noise).square() + variational_bound(step, x, xt, epsilon.detach(), v, first=t == 0)
    return ((error.mean(-1) * valid).sum(1) / valid.sum(1).clamp(min=1)).mean()


def variational_bound(step: Posterior, x: Tensor, xt: Tensor, epsilon: Tensor, v: Tensor, first: Tensor) -> Tensor:
    """The term L_t of the variational bound for each value, in bits. [B, n, C]

    first: [B] bool, rows whose step ends at the picture: their term is the likelihood of x itself, L_0
    """
    predicted = step.mean((xt - step.sigma * epsilon) / step.alpha, xt)
    log_variance = step.log_variance(v)
    # KL divergence from the posterior, of variance β̃, to the prediction.
    distance = (step.mean(x, xt) - predicted).square() * (-log_variance).exp()
    gap = log_variance - step.low
    divergence = 0.5 * (gap + torch.expm1(-gap) + distance)
    likelihood = discretised_gaussian_nll(x, predicted, log_variance)
    return torch.where(first[:, None, None], likelihood, divergence) / math.log(2)


def discretised_gaussian_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """−log of what a Gaussian gives to the bin x ± 1/255, in nats; the bins at ±1 are open to the outside.

    Source: Ho et al. 2020, equation 13, with the approximate normal distribution function of Nichol & Dhariwal's code.
    """

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    precision = (-0.5 * log_variance).exp()
    upper, lower = cdf(precision * (x - mean + 1 / 255)), cdf(precision * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return -probability.clamp(min=1e-12).log()
