"""What a checkpoint is made of, as text."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..model.lazydiffusion import LazyDiffusion


def checkpoint_text(model: LazyDiffusion, path: Path) -> str:
    config, size, sampling = model.config, model.config.network, model.config.sampling
    rows = {
        "name": config.name,
        "file": f"{path} ({path.stat().st_size / 1e6:.1f} MB)",
        "canvas": f"{size.canvas}×{size.canvas} px, {size.grid}×{size.grid} tokens of {size.token} px",
        "latent": f"{size.channels} channels, one cell per {size.cell} px",
        "encoder": f"{size.encoder_depth} blocks, {size.width} wide, {count(model.encoder)}",
        "decoder": f"{size.decoder_depth} blocks, {size.width} wide, {count(model.decoder)}",
        "text": f"{config.text_layers} layers, {size.text_width} wide, {count(model.text)}",
        "prediction": {"flow": "clean tokens, on a flow path", "iddpm": "noise and variance"}[config.prediction],
        "sampling": f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance}, "
        f"temperature {sampling.temperature}",
        "fingerprint": model.fingerprint,
    }
    return "\n".join(f"{name:12} {value}" for name, value in rows.items())


def count(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
