"""Checkpoints: one safetensors file that holds weights, vocabulary and, as JSON in its metadata, the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.files import whole_file
from .config import ModelConfig, NetworkConfig, Sampling
from .lazydiffusion import LazyDiffusion
from .text import TextEncoder

FORMAT = 1
OBSOLETE = ("crop", "encoder_window")  # sizes that older checkpoints name, and that changed no weight
METADATA = "lazydiffusion"  # the metadata entry that tells our checkpoints from all others
VOCABULARY = "spiece_model"  # the name under which T5 checkpoints carry their sentencepiece model
# ComfyUI looks for a diffusion model under this prefix and hands on nothing else, so the encoder goes there too.
PREFIXES = {"decoder.": "model.diffusion_model.", "encoder.": "model.diffusion_model.encoder."}
SHIPPED = Path(__file__).parents[1] / "weights" / "lazydiffusion-small.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


def save_checkpoint(model: LazyDiffusion, path: Path | str, dtype: torch.dtype = torch.float16) -> None:
    """Write a model; a file that was there stays whole until the new one is.

    Text encoder and latent space are written where they are the model's own, not where they are public ones.
    """
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights(model).items()}
    if isinstance(model.text, TextEncoder):
        tensors[VOCABULARY] = torch.frombuffer(bytearray(model.text.vocabulary), dtype=torch.uint8)
        # The latent space is a few kilobytes that every pixel goes through.
        tensors |= {f"latent.{name}": tensor.cpu() for name, tensor in model.latent.state_dict().items()}
    metadata = {METADATA: json.dumps({"format": FORMAT, **asdict(model.config)})}
    with whole_file(Path(path)) as unfinished:
        save_file(tensors, unfinished, metadata)


def load_checkpoint(
    path: Path | str, text: Any = None, latent: Any = None, *,
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **networks: Any,
) -> LazyDiffusion:  # fmt: skip
    """Read a model for inference.

    text, latent: for a checkpoint without its own, e.g. `PretrainedT5` and `DiffusersVAE`
    device, dtype: of the whole model, text encoder and latent space with it
    networks: `operations` and `attention` of encoder and decoder
    Errors: `CheckpointError` for a missing, truncated or foreign file, an unknown version, missing or misshapen
    weights.
    """
    path = Path(path)
    config, tensors = read_checkpoint(path)
    if VOCABULARY in tensors:
        model = LazyDiffusion.self_contained(config, tensors.pop(VOCABULARY).numpy().tobytes(), **networks)
    elif text is None or latent is None:
        raise CheckpointError(f"{path}: it has no text encoder ({VOCABULARY}) of its own and none was given")
    else:
        model = LazyDiffusion(config, text, latent, **networks)
    expected = weights(model)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise CheckpointError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]}")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{path}: {len(unknown)} weights are not of this model, the first is {unknown[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {list(tensor.shape)}, the model needs {list(expected[name].shape)}"
            )
    for name, tensor in tensors.items():
        expected[name].copy_(tensor)
    model.eval().requires_grad_(False)
    model.fingerprint  # noqa: B018  now, while the weights are as they are stored
    return model.to(device, dtype)


def read_checkpoint(path: Path | str) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors of a checkpoint, by their names in the file.

    Errors: `CheckpointError` for a missing, truncated or foreign file, or an unknown version.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            return read_config(path, file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def weights(model: LazyDiffusion) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint of the model holds, by their names in the file."""
    parts = ("encoder.", "decoder.") if not isinstance(model.text, TextEncoder) else ("",)
    named = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(parts)}
    named.pop("text.t5.encoder.embed_tokens.weight", None)  # the same tensor as text.t5.shared.weight
    return {file_name(name): tensor for name, tensor in named.items()}


def file_name(name: str) -> str:
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def read_config(path: Path, metadata: dict[str, str]) -> ModelConfig:
    """The configuration of a checkpoint, from its metadata."""
    if METADATA not in metadata:
        raise CheckpointError(f"{path}: not a LazyDiffusion checkpoint (its metadata has no entry “{METADATA}”)")
    try:
        values = json.loads(metadata[METADATA])
        version = values.pop("format")
        if version != FORMAT:
            raise CheckpointError(f"{path}: checkpoint format {version} is unknown here, this version reads {FORMAT}")
        network = {name: value for name, value in values["network"].items() if name not in OBSOLETE}
        values["network"] = NetworkConfig(**network)
        values["sampling"] = Sampling(**values["sampling"])
        values["words"] = tuple(values.get("words", ()))
        return ModelConfig(**values)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the configuration in its metadata cannot be read ({error!r})") from error
