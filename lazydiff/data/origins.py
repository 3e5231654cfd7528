"""Which VAE and text encoder a training's shards are of, checked against the model and written down in it."""

from __future__ import annotations

from dataclasses import replace

from ..model.config import ModelConfig
from .shards import ShardHeader


def record_origins(config: ModelConfig, header: ShardHeader, side: int | None = None) -> ModelConfig:
    """The configuration of a model that is trained on shards: its checkpoints name the VAE and text encoder of these.

    side: px of the pictures that it is trained on; the canvas's if not given
    Errors: ValueError for shards of other sizes than the model's, or of another VAE or text encoder than it was trained
    with before.
    """
    network, vae, text = config.network, header.vae, header.text
    sizes = {"pictures' side in px": (header.size, side or network.canvas)}
    if vae is not None:
        sizes |= {"latents' channels": (vae.channels, network.channels), "px per cell": (vae.cell, network.cell)}
    if text is not None:
        sizes |= {"text features' width": (text.width, network.text_width)}
    for name, (here, needed) in sizes.items():
        if here != needed:
            raise ValueError(f"the shards' {name}: {here}, the model's: {needed}; prepare them for this model")
    return replace(
        config,
        vae=same_origin("VAE", config.vae, None if vae is None else vae.fingerprint),
        text_encoder=same_origin("text encoder", config.text_encoder, None if text is None else text.fingerprint),
    )


def same_origin(name: str, before: str | None, now: str | None) -> str | None:
    """The fingerprint that is known. Errors: ValueError for two that differ."""
    if before is not None and now is not None and before != now:
        raise ValueError(f"the model was trained with another {name} ({before}) than the shards' ({now})")
    return before or now
