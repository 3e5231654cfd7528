"""Muon for the matrices of blocks, AdamW for everything else, as one optimiser.

A matrix is moved by its momentum with all singular values near one: what few examples ask for is learned as soon as
what all of them do. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the size of
the steps, with which AdamW's learning rate and decay are Muon's too: Liu et al. 2025, "Muon is Scalable for LLM
Training". torch's own (from 2.9 on) takes matrices alone, and is what tests compare this with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the iteration, whose singular values end between 0.7 and 1.2
ITERATIONS = 5


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but for groups of parameters that say `muon: True`, all of them matrices, whose only moment is
    `exp_avg`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        turned = {p: p.grad for group in self.param_groups if group.get("muon") for p in group["params"]}
        for group in self.param_groups:
            for p in group["params"] if group.get("muon") else ():
                if p.grad is not None:
                    self.turn(p, group["lr"], group["weight_decay"])
                    p.grad = None  # AdamW leaves alone what has none
        super().step()
        for p, grad in turned.items():
            p.grad = grad

    def turn(self, p: Tensor, rate: float, decay: float) -> None:
        """Take Muon's step with one matrix, with Nesterov's momentum."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["exp_avg"] = torch.zeros_like(p)
        state["exp_avg"].lerp_(p.grad, 1 - MOMENTUM)
        update = orthogonal(p.grad.lerp(state["exp_avg"], MOMENTUM))
        p.mul_(1 - rate * decay).add_(update.to(p), alpha=-rate * 0.2 * max(p.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """U·Vᵀ of a matrix U·S·Vᵀ, nearly, by Newton and Schulz's iteration in bf16."""
    x, (a, b, c) = matrix.bfloat16(), COEFFICIENTS
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
