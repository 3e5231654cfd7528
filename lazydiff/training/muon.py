"""Muon for the matrices of blocks and AdamW for everything else, as one optimiser.

A matrix is moved by its momentum with all singular values near one: what few examples ask for is learned as soon as
what all of them do. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the size of
the steps, with which AdamW's learning rate and decay are Muon's too: Liu et al. 2025, "Muon is Scalable for LLM
Training".
"""

from __future__ import annotations

from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """Both of torch's on one list of groups, of which those that say `muon: True` have matrices alone.

    settings: AdamW's
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, **settings: Any):
        matrices, others = ([g for g in groups if bool(g.get("muon")) == muon] for muon in (True, False))
        self.parts = {
            True: torch.optim.Muon(matrices, lr, adjust_lr_fn="match_rms_adamw"),
            False: torch.optim.AdamW(others, lr, **settings),
        }
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for muon, part in self.parts.items():
            # Whoever schedules or restores this optimiser changes its own groups and state, or puts others there.
            part.param_groups = [group for group in self.param_groups if bool(group.get("muon")) == muon]
            part.state = self.state
            part.step()
