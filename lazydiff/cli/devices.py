"""Where models are computed, and in which numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds, and the arguments are read without it
    import torch

    from ..model.latent_space import DiffusersVAE
    from ..model.lazydiffusion import LazyDiffusion
    from ..model.text import PretrainedT5

    Parts = tuple[PretrainedT5 | None, DiffusersVAE | None]

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", choices=DEVICES, default="auto", help="auto: CUDA where there is one, else MPS, else the CPU"
    )


def add_dtype(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", choices=DTYPES, default="auto", help="numbers of the steps; auto: float32 on a CPU")


def add_parts(command: argparse._ActionsContainer) -> None:
    command.add_argument("--vae", type=Path, help="folder of a diffusers AutoencoderKL, or a pipeline's with vae/")
    command.add_argument(
        "--text-encoder", type=Path, help="folder of a T5 encoder and its tokenizer, or a pipeline's with text_encoder/"
    )


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


def load(
    path: Path, options: argparse.Namespace, parts: Parts | None = None, strict: bool = False, **networks: Any
) -> LazyDiffusion:
    """The model of a checkpoint where and as the user wants it: its decoder in the numbers that --dtype names.

    parts: what it shares with another model; those whose folders the options name if not given
    strict: a text encoder or VAE other than it was trained with is an error, else a note
    Errors: ValueError for a checkpoint that cannot be used, or folders that it needs and lacks, or has no use for.
    """
    from ..model.checkpoint import load_checkpoint
    from ..model.pretrained import find_strangers

    device = choose_device(options.device)
    dtype = choose_dtype(getattr(options, "dtype", "float32"), device)
    text, latent = parts or load_parts(path, options)
    model = load_checkpoint(path, text, latent, device=device, **networks)
    model.decoder.to(dtype)
    for line in find_strangers(model.config, model.text, model.latent):
        if strict:
            raise ValueError(f"{path}: {line}")
        print(f"note: {line}", file=sys.stderr)
    return model


def load_parts(path: Path, options: argparse.Namespace) -> Parts:
    """The text encoder and the VAE whose folders the user names; none of each for a checkpoint with its own.

    T5 keeps the range of float32 in bfloat16 and leaves that of float16, so bfloat16 stands for either here; every
    pixel goes through the VAE, which stays in float32.
    """
    import torch

    from ..model.checkpoint import read_settings
    from ..model.pretrained import load_text_encoder, load_vae

    config, own = read_settings(path)
    folders = {"--text-encoder": getattr(options, "text_encoder", None), "--vae": getattr(options, "vae", None)}
    given = [name for name, folder in folders.items() if folder is not None]
    if own and given:
        raise ValueError(f"{path} has a text encoder and a latent space of its own: leave out {' and '.join(given)}")
    if own:
        return None, None
    if missing := [name for name in folders if name not in given]:
        raise ValueError(
            f"{path} has no text encoder and no VAE of its own: name the folders of those it was trained with "
            f"({' and '.join(missing)})"
        )
    dtype = choose_dtype(options.dtype, choose_device(options.device))
    numbers = torch.float32 if dtype == torch.float32 else torch.bfloat16
    return load_text_encoder(options.text_encoder, config.network.text_length, numbers), load_vae(options.vae)
