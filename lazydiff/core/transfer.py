"""Copies between main memory and a GPU that the host does not wait for: they are made from and to pinned memory.

The device makes them in the order in which it is given its work.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Bring a tensor to a device; from main memory to a GPU without waiting for it."""
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def to_main_memory(x: Tensor) -> Tensor:
    """Bring a tensor to main memory, from a GPU without waiting for it.

    There, what reads the copy has to come after something that did wait: a later copy, or work of the same device.
    """
    if x.device.type != "cuda":
        return x.to("cpu")
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
