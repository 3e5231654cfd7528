"""Flow path with prediction of the clean tokens: z = (1 − σ)·x + σ·ε, σ from 1 (noise) to 0 (picture).

A network of kind "flow" refines a per-channel Wiener estimate, x̂ = c_skip·z + c_out·F, so that its target has unit
variance at every noise level and in every channel (the preconditioning of Karras et al. 2022, carried to channels of
different variance). One of kind "wiener" answers with mean and variance of the clean tokens as it expects them, and the
estimate is their mean once z is counted in. Under little noise F is mostly noise, which a network narrower than its
tokens cannot carry through (Li and He 2025, "Back to Basics: Let Denoising Generative Models Denoise"). Here z passes
by the network, as far as that lets it: where a channel's variance is next to nothing, on smooth ground, no grain stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# A decoder bound to its hole, context and prompt: network(x, t) -> prediction [B, n, C]; t: [B], or [1] for all rows.
Network = Callable[[Tensor, Tensor], Tensor]
SPREAD = 8.0  # of the logarithm of a variance that a network expects, to either side of the channel's own


class Preconditioning(NamedTuple):
    """Factors [B or 1, 1, C] of input, skip and output."""

    scale: Tensor
    skip: Tensor
    out: Tensor

    @classmethod
    def at(cls, sigma: Tensor, variance: Tensor) -> Preconditioning:
        """sigma: [B] or [1]; variance: [C] of the clean tokens' channels"""
        shared, total = covariances(sigma, variance)
        return cls(total.rsqrt(), shared / total, sigma[:, None, None] * (variance / total).sqrt())


def covariances(sigma: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Of z with the clean tokens, and of z with itself; variance: [C] or [B, n, C] of the clean tokens."""
    sigma = sigma[:, None, None]
    shared = (1 - sigma) * variance
    return shared, (1 - sigma) * shared + sigma**2


def predict_clean(network: Network, z: Tensor, sigma: Tensor, variance: Tensor, prediction: str = "flow") -> Tensor:
    """Estimate x̂ [B, n, C] of the clean tokens from z [B, n, C] at noise level sigma, [B] or [1].

    prediction: the network's kind, "flow" or "wiener"; the second answers with [B, n, 2·C], means in deviations of
        their channels, then logarithms of variances in shares of theirs
    """
    if prediction == "flow":
        factor = Preconditioning.at(sigma, variance)
        return torch.addcmul(factor.skip * z, factor.out, network(factor.scale * z, 1000 * sigma))
    _, total = covariances(sigma, variance)
    mean, spread = network(total.rsqrt() * z, 1000 * sigma).float().chunk(2, dim=-1)
    mean = variance.sqrt() * mean
    shared, total = covariances(sigma, variance * spread.clamp(-SPREAD, SPREAD).exp())
    return torch.addcmul(mean, shared / total, z - (1 - sigma[:, None, None]) * mean)


def flow_loss(
    predict: Network, x: Tensor, noise: Tensor, sigma: Tensor, variance: Tensor, valid: Tensor, weight: Tensor
) -> Tensor:
    """Mean squared error of the clean tokens in shares of what a Wiener estimate leaves, averaged over each row's valid
    tokens, then over rows. To a network that refines that estimate it is the error of its own target.

    predict: (z, sigma) -> x̂, see `predict_clean`; weight: [C] how much each channel counts, 1 on average
    """
    z = (1 - sigma[:, None, None]) * x + sigma[:, None, None] * noise
    left = Preconditioning.at(sigma, variance).out
    error = (weight * ((predict(z, sigma).float() - x) / left).square()).mean(-1)
    return ((error * valid).sum(1) / valid.sum(1).clamp(min=1)).mean()


def draw_sigmas(rows: int, each: int, mean: float, deviation: float, generator: torch.Generator) -> Tensor:
    """`each` stratified noise levels σ for each of `rows` pictures, [rows·each]: σ = sigmoid of a normal, one in ten
    uniform so that no level goes unseen."""
    strata = torch.arange(each) + torch.rand(rows, each, generator=generator)
    uniform = (strata / each).clamp(1e-4, 1 - 1e-4)
    normal = torch.sigmoid(mean + deviation * torch.special.ndtri(uniform))
    return torch.where(torch.rand(rows, each, generator=generator) < 0.1, uniform, normal).flatten()
