"""Checkpoints: one safetensors file that holds weights, vocabulary and, as JSON in its metadata, the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.files import check_file, whole_file
from .config import SHIPPED, ModelConfig
from .lazydiffusion import LazyDiffusion
from .metadata import (
    METADATA,
    PREFIXES,
    VOCABULARY,
    CheckpointError,
    check_tensors,
    metadata_of,
    part,
    read_config,
    weights,
)
from .pretrained import find_misfit
from .text import TextEncoder

__all__ = [
    "METADATA", "PREFIXES", "SHIPPED", "VOCABULARY", "CheckpointError", "load_checkpoint", "part", "read_checkpoint",
    "read_settings", "save_checkpoint",
]  # fmt: skip


def save_checkpoint(model: LazyDiffusion, path: Path | str, dtype: torch.dtype = torch.float16) -> None:
    """Write a model; a file that was there stays whole until the new one is.

    Text encoder and latent space are written where they are the model's own, not where they are public ones.
    """
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights(model).items()}
    if isinstance(model.text, TextEncoder):
        tensors[VOCABULARY] = torch.frombuffer(bytearray(model.text.vocabulary), dtype=torch.uint8)
        # The latent space is a few kilobytes that every pixel goes through.
        tensors |= {f"latent.{name}": tensor.cpu() for name, tensor in model.latent.state_dict().items()}
    with whole_file(Path(path)) as unfinished:
        save_file(tensors, unfinished, metadata_of(model.config))


def load_checkpoint(
    path: Path | str, text: Any = None, latent: Any = None, *,
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **networks: Any,
) -> LazyDiffusion:  # fmt: skip
    """Read a model for inference.

    text, latent: for a checkpoint without its own, e.g. `load_text_encoder(folder)` and `load_vae(folder)`
    device, dtype: of the whole model; a text encoder and latent space that are given keep their number types
    networks: `operations` and `attention` of encoder and decoder
    Errors: `CheckpointError` for a file that `read_checkpoint` does not take, a text encoder that it lacks, or one or a
    VAE that does not fit its sizes.
    """
    path = Path(path)
    config, tensors = read_checkpoint(path)
    if VOCABULARY in tensors:
        model = LazyDiffusion.self_contained(config, tensors.pop(VOCABULARY).numpy().tobytes(), **networks)
    elif text is None or latent is None:
        raise CheckpointError(
            f"{path}: it has no text encoder ({VOCABULARY}) and VAE of its own, and they were not given"
        )
    else:
        if misfit := find_misfit(config.network, text, latent):
            raise CheckpointError(f"{path}: {misfit}")
        model = LazyDiffusion(config, text, latent, **networks)
    expected = weights(model)
    for name, tensor in tensors.items():
        expected[name].copy_(tensor)
    model.eval().requires_grad_(False)
    model.fingerprint  # noqa: B018  now, while the weights are as they are stored
    for module in (model.encoder, model.decoder) if model.text is text else (model,):
        module.to(dtype)
    return model.to(device)


def read_checkpoint(path: Path | str) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors of a checkpoint, by their names in the file, found to belong together.

    Errors: `CheckpointError` for a missing, truncated or foreign file, an unknown version, a configuration that no
    model has, a damaged vocabulary, missing or misshapen weights, or weights that are not numbers.
    """
    path = Path(path)
    with opened(path) as file:
        config = read_config(path, file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    check_tensors(path, config, tensors)
    return config, tensors


def read_settings(path: Path | str) -> tuple[ModelConfig, bool]:
    """The configuration of a checkpoint, and whether its text encoder and latent space are its own; no weight is read.

    Errors: `CheckpointError` for a missing, truncated or foreign file, or a configuration that no model has.
    """
    path = Path(path)
    with opened(path) as file:
        return read_config(path, file.metadata() or {}), VOCABULARY in file.keys()


def is_checkpoint(path: Path | str) -> bool:
    """Whether a file calls itself a checkpoint of ours; nothing but its metadata is read."""
    try:
        with opened(Path(path)) as file:
            return METADATA in (file.metadata() or {})
    except CheckpointError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Errors: `CheckpointError` for what is none."""
    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
