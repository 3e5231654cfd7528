"""Muon for the matrices of blocks and AdamW for everything else, as one optimiser.

A matrix is moved by its momentum with all singular values near one: what few examples ask for is learned as soon as
what all of them do. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the size of
the steps, with which AdamW's learning rate and decay are Muon's too: Liu et al. 2025, "Muon is Scalable for LLM
Training".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

MOMENT = "momentum_buffer"  # the only one that Muon has


class MuonAdamW(torch.optim.Optimizer):
    """Both of torch's on one list of groups, of which those that say `muon: True` have matrices alone.

    To find the singular values takes as long for one example as for many, so each of several processes moves a share of
    the matrices, and hands it to the others.

    settings: AdamW's
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, **settings: Any):
        matrices, others = ([g for g in groups if bool(g.get("muon")) == muon] for muon in (True, False))
        self.muon = torch.optim.Muon(matrices, lr, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr, **settings)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        # Whoever schedules or restores this optimiser changes its own groups and state, or puts others there.
        groups = [group for group in self.param_groups if group.get("muon")]
        self.muon.param_groups = [group | {"params": share(group["params"])[rank()]} for group in groups]
        self.adamw.param_groups = [group for group in self.param_groups if not group.get("muon")]
        for part in (self.muon, self.adamw):
            part.state = self.state
            part.step()
        for group in groups:
            exchange(share(group["params"]))

    def gather(self) -> None:
        """Let every process have all moments: of matrices that others move, it has none, or old ones."""
        for group in self.param_groups:
            if group.get("muon"):
                for p in group["params"]:
                    self.state[p].setdefault(MOMENT, torch.zeros_like(p))
                exchange([[self.state[p][MOMENT] for p in own] for own in share(group["params"])])


def processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(matrices: list[Tensor]) -> list[list[Tensor]]:
    """What each process moves: nothing, where there are more of them than matrices."""
    return [matrices[process :: processes()] for process in range(processes())]


@torch.no_grad()
def exchange(shares: list[list[Tensor]]) -> None:
    """Each process's share goes to all others, in place."""
    for process, own in enumerate(shares if len(shares) > 1 else ()):
        if not own:
            continue
        together = torch.cat([value.flatten() for value in own])
        distributed.broadcast(together, process)
        for value, there in zip(own, together.split([value.numel() for value in own]), strict=True):
            value.copy_(there.view_as(value))
