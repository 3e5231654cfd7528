"""Where models are computed, and in which numbers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds, and the arguments are read without it
    import torch

    from ..model.lazydiffusion import LazyDiffusion

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", choices=DEVICES, default="auto", help="auto: CUDA where there is one, else MPS, else the CPU"
    )


def add_dtype(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", choices=DTYPES, default="auto", help="numbers of the steps; auto: float32 on a CPU")


def choose_device(name: str) -> torch.device:
    """Errors: ValueError for a device that is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, found in there.items() if found)
    if not there[name]:
        choices = ", ".join(device for device, found in there.items() if found)
        raise ValueError(f"there is no device “{name}” here: choose {choices}")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    import torch

    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load(path: Path, options: argparse.Namespace, **networks: Any) -> LazyDiffusion:
    """The model of a checkpoint where and as the user wants it."""
    from ..model.checkpoint import load_checkpoint

    device = choose_device(options.device)
    model = load_checkpoint(path, **networks).to(device)
    model.decoder.to(choose_dtype(getattr(options, "dtype", "float32"), device))
    return model
