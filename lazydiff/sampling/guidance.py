"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from .flow import Network


def branches(guidance: float) -> int:
    """Rows of text that each sample needs: conditional and unconditional, or at guidance 1 the conditional alone."""
    return 1 if guidance == 1 else 2


def guide(network: Network, guidance: float, learned_variance: bool = False) -> Network:
    """The network of one batch whose prediction is p_u + guidance·(p_c − p_u), both from one call.

    network: bound to `branches(guidance)` times the rows, all conditional rows first: [conditional; unconditional]
    learned_variance: the second half of the channels is the variance; the conditional branch's is passed on as it is
    The original DiT and PixArt codes guide 3 of 4 channels by mistake; this guides all.
    """
    if branches(guidance) == 1:
        return network

    def guided(x: Tensor, t: Tensor) -> Tensor:
        t = t if len(t) == 1 else torch.cat((t, t))
        conditional, unconditional = network(torch.cat((x, x)), t).float().chunk(2)
        channels = conditional.shape[-1] // (2 if learned_variance else 1)
        predicted, variance = conditional[..., :channels], conditional[..., channels:]
        base = unconditional[..., :channels]
        mixed = torch.add(base, predicted - base, alpha=guidance)
        return torch.cat((mixed, variance), dim=-1) if learned_variance else mixed

    return guided
