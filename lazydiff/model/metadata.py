"""What a checkpoint says about itself, and whether its tensors are what it says; nothing of a model's size is built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from .config import ModelConfig, NetworkConfig, Sampling
from .lazydiffusion import LazyDiffusion
from .text import TextEncoder

FORMAT = 1
METADATA = "lazydiffusion"  # the metadata entry that tells our checkpoints from all others
OBSOLETE = ("crop", "encoder_window")  # sizes that older checkpoints name, and that changed no weight
VOCABULARY = "spiece_model"  # the name under which T5 checkpoints carry their sentencepiece model
# ComfyUI looks for a diffusion model under this prefix and hands on nothing else, so the encoder goes there too.
PREFIXES = {"decoder.": "model.diffusion_model.", "encoder.": "model.diffusion_model.encoder."}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


def metadata_of(config: ModelConfig) -> dict[str, str]:
    """The metadata of a checkpoint's file; what nobody has written down is left out, so that older versions read it."""
    values = {name: value for name, value in asdict(config).items() if value is not None}
    values["network"] = config.network.named
    return {METADATA: json.dumps({"format": FORMAT, **values})}


def read_config(path: Path, metadata: Mapping[str, str]) -> ModelConfig:
    """The configuration of a checkpoint, from its metadata.

    Errors: `CheckpointError` for metadata that is not ours, of an unknown version, or that no model has.
    """
    if METADATA not in metadata:
        raise CheckpointError(f"{path}: not a LazyDiffusion checkpoint (its metadata has no entry “{METADATA}”)")
    try:
        values = json.loads(metadata[METADATA])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the configuration in its metadata cannot be read ({error})") from error
    version = values.pop("format", None) if isinstance(values, dict) else None
    if type(version) is not int:
        raise CheckpointError(f"{path}: the configuration in its metadata cannot be read (it names no format)")
    if version != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {version} is unknown here, this version reads {FORMAT}")
    try:
        if isinstance(values.get("network"), dict):
            values["network"] = {name: size for name, size in values["network"].items() if name not in OBSOLETE}
        values["network"] = build(NetworkConfig, values.get("network"), "network")
        values["sampling"] = build(Sampling, values.get("sampling"), "sampling")
        values["words"] = tuple(values.get("words", ()))
        config: ModelConfig = build(ModelConfig, values, "configuration")
        config.check()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the configuration in its metadata cannot be used: {error}") from error
    return config


def build(kind: Any, values: Any, name: str) -> Any:
    """A dataclass of named values. Errors: ValueError for a value that is missing or that it does not know."""
    if not isinstance(values, dict):
        raise ValueError(f"{name} is missing or has no settings in it")
    known = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{name} has no setting called {', '.join(unknown)[:80]}")
    if missing := sorted(needed - values.keys()):
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    return kind(**values)


def check_tensors(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Errors: `CheckpointError` unless the tensors are those of a model of this configuration, and all are numbers.

    The model that they are compared with has shapes and no memory.
    """
    vocabulary = read_vocabulary(path, tensors)
    with torch.device("meta"):
        if vocabulary is None:
            model = LazyDiffusion(config, None, None)
        else:
            model = LazyDiffusion.self_contained(config, vocabulary)
    expected = weights(model)
    given = tensors.keys() - {VOCABULARY}
    if missing := sorted(expected.keys() - given):
        raise CheckpointError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]}")
    if unknown := sorted(given - expected.keys()):
        raise CheckpointError(f"{path}: {len(unknown)} weights are not of this model, the first is {unknown[0]}")
    for name in sorted(given):
        shape, needed = list(tensors[name].shape), list(expected[name].shape)
        if shape != needed:
            raise CheckpointError(f"{path}: {name} has the shape {shape}, the model needs {needed}")
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"{path}: {name} is of type {tensors[name].dtype}, no floating point")
        if not tensors[name].float().isfinite().all():
            raise CheckpointError(f"{path}: {name} has values that are not numbers (NaN or infinite)")


def read_vocabulary(path: Path, tensors: Mapping[str, Tensor]) -> bytes | None:
    """The sentencepiece model of a checkpoint with a text encoder of its own, None of one without.

    Errors: `CheckpointError` for one that is damaged.
    """
    if VOCABULARY not in tensors:
        if any(name.startswith("text.") for name in tensors):
            raise CheckpointError(f"{path}: its vocabulary ({VOCABULARY}) is missing: no text encoder without it")
        return None
    stored = tensors[VOCABULARY]
    if stored.dtype != torch.uint8 or stored.ndim != 1:
        raise CheckpointError(f"{path}: its vocabulary ({VOCABULARY}) is damaged: not a row of bytes")
    vocabulary = stored.numpy().tobytes()
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
        specials = pieces.pad_id(), pieces.eos_id(), pieces.unk_id()
        numbers = [*pieces.encode("a dotted red house, another one"), *specials]
    except Exception as error:  # whatever the library makes of damaged bytes
        raise CheckpointError(f"{path}: its vocabulary ({VOCABULARY}) is damaged ({error})") from error
    if specials != (0, 1, 2) or not all(0 <= number < pieces.vocab_size() for number in numbers):
        raise CheckpointError(f"{path}: its vocabulary ({VOCABULARY}) is damaged: its special tokens are {specials}")
    return vocabulary


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def weights(model: LazyDiffusion) -> dict[str, Tensor]:
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
