"""Work on pictures, done on the device that models are loaded to."""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.model_management as mm
import torch
from torch import Tensor

BUFFERS = 16  # that such work needs beside its pictures, each as large as all of them


def on_load_device(work: Callable[..., Tensor], *pictures: Tensor) -> Tensor:
    """What some work makes of pictures, in main memory; it is done there too where the device has no room for it."""
    device, home = mm.get_torch_device(), mm.intermediate_device()
    if device.type != "cpu":
        mm.free_memory(BUFFERS * sum(each.nbytes for each in pictures), device)
    try:
        return work(*(each.to(device) for each in pictures)).to(home)
    except Exception as error:
        raise_unless_out_of_memory(error, "blending and masks go on in main memory")
    return work(*(each.to("cpu") for each in pictures)).to(home)


def raise_unless_out_of_memory(error: Exception, what_then: str) -> None:
    known = mm.is_oom(error) if hasattr(mm, "is_oom") else isinstance(error, torch.cuda.OutOfMemoryError)
    if not known:
        raise error
    logging.warning("Lazy Diffusion: the device is out of memory: %s", what_then)
