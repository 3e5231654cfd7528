"""Flow path with prediction of the clean tokens: z = (1 − σ)·x + σ·ε, σ from 1 (noise) to 0 (picture).

The network refines a per-channel Wiener estimate, x̂ = c_skip·z + c_out·F, so that its target has unit variance at every
noise level and in every channel (the preconditioning of Karras et al. 2022, carried to channels of different variance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# A decoder bound to its hole, context and prompt: network(x, t) -> prediction [B, n, C]; t: [B], or [1] for all rows.
Network = Callable[[Tensor, Tensor], Tensor]


class Preconditioning(NamedTuple):
    """Factors [B or 1, 1, C] of input, skip and output."""

    scale: Tensor
    skip: Tensor
    out: Tensor

    @classmethod
    def at(cls, sigma: Tensor, variance: Tensor) -> Preconditioning:
        """sigma: [B] or [1]; variance: [C] of the clean tokens' channels"""
        sigma = sigma[:, None, None]
        signal = (1 - sigma) * variance
        total = (1 - sigma) * signal + sigma**2
        return cls(total.rsqrt(), signal / total, sigma * (variance / total).sqrt())


def predict_clean(network: Network, z: Tensor, sigma: Tensor, variance: Tensor) -> Tensor:
    """Estimate x̂ [B, n, C] of the clean tokens from z [B, n, C] at noise level sigma, [B] or [1]."""
    factor = Preconditioning.at(sigma, variance)
    return torch.addcmul(factor.skip * z, factor.out, network(factor.scale * z, 1000 * sigma))


def flow_loss(
    network: Network, x: Tensor, noise: Tensor, sigma: Tensor, variance: Tensor, valid: Tensor, weight: Tensor
) -> Tensor:
    """Mean squared error of the network's own target, averaged over each row's valid tokens, then over rows.

    weight: [C] how much each channel counts, 1 on average
    """
    factor = Preconditioning.at(sigma, variance)
    z = (1 - sigma[:, None, None]) * x + sigma[:, None, None] * noise
    target = (x - factor.skip * z) / factor.out
    error = (weight * (network(factor.scale * z, 1000 * sigma).float() - target).square()).mean(-1)
    return ((error * valid).sum(1) / valid.sum(1).clamp(min=1)).mean()


def draw_sigmas(rows: int, each: int, mean: float, deviation: float, generator: torch.Generator) -> Tensor:
    """`each` stratified noise levels σ for each of `rows` pictures, [rows·each]: σ = sigmoid of a normal, one in ten
    uniform so that no level goes unseen."""
    strata = torch.arange(each) + torch.rand(rows, each, generator=generator)
    uniform = (strata / each).clamp(1e-4, 1 - 1e-4)
    normal = torch.sigmoid(mean + deviation * torch.special.ndtri(uniform))
    return torch.where(torch.rand(rows, each, generator=generator) < 0.1, uniform, normal).flatten()
