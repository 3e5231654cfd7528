"""The moving average of a model's parameters, whole or in the parts that a process has, and models made of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

M = TypeVar("M", bound=nn.Module)


class Average:
    """The exponential moving average of the parameters that a training changes."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.source: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = {name: value.detach().clone() for name, value in self.source.items()}

    @torch.no_grad()
    def update(self, first: bool) -> None:
        """Move on to the model's parameters; to all of them at the first step of a training."""
        ours, theirs = list(self.parameters.values()), list(self.source.values())
        torch._foreach_lerp_(ours, theirs, 1.0 if first else 1 - self.decay)


def blank_copy(model: M) -> M:
    """A copy of a model in which all that a training changes has a shape and no memory."""
    trained = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters() if p.requires_grad}
    return copy.deepcopy(model, trained | {id(p): p for p in model.parameters() if not p.requires_grad})


def filled_copy(blank: M, tensors: Mapping[str, Tensor]) -> M:
    """A copy of a model on other parameters and buffers, by their names, for inference; it shares their memory."""
    own = {id(value): nn.Parameter(tensors.get(name, value), False) for name, value in blank.named_parameters()}
    model = copy.deepcopy(blank, own | {id(value): tensors.get(name, value) for name, value in blank.named_buffers()})
    return model.eval()


def whole(value: Tensor, wanted: bool = True) -> Tensor:
    """A tensor itself; of one that is spread over processes the whole, on the CPU, where it is wanted, else nothing.

    All processes have to ask for it together.
    """
    value = value.detach()
    if not isinstance(value, DTensor):
        return value
    together = value.full_tensor()
    return together.cpu() if wanted else value.to_local().new_empty(0)


def copy_whole(source: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be spread over processes, of which each takes its part."""
    if isinstance(value, DTensor):
        source = distribute_tensor(source, value.device_mesh, value.placements, src_data_rank=None)
    value.copy_(source)
