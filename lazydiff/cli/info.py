"""What a checkpoint is made of, as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..model.checkpoint import PREFIXES, VOCABULARY, part, read_checkpoint
from ..model.lazydiffusion import fingerprint

UNKNOWN = "that it was trained with (not written down which)"


def checkpoint_text(path: Path) -> str:
    """What a checkpoint says about itself; neither text encoder nor VAE is needed for it.

    Errors: `CheckpointError` for a file that `read_checkpoint` does not take.
    """
    config, tensors = read_checkpoint(path)
    size, sampling, own = config.network, config.sampling, VOCABULARY in tensors
    encoder = part(tensors, PREFIXES["encoder."])
    both = part(tensors, PREFIXES["decoder."])
    decoder = {name: tensor for name, tensor in both.items() if not name.startswith("encoder.")}
    text = f"{config.text_layers} layers, {size.text_width} wide, {count(part(tensors, 'text.'))}"
    stranger = f"{size.text_width} wide, of the text encoder {config.text_encoder or UNKNOWN}"
    latent = f"{size.channels} channels, one cell per {size.cell} px"
    rows = {
        "name": config.name,
        "file": f"{path} ({path.stat().st_size / 1e6:.1f} MB)",
        "canvas": f"{size.canvas}×{size.canvas} px, {size.grid}×{size.grid} tokens of {size.token} px",
        "latent": latent if own else f"{latent}, of the VAE {config.vae or UNKNOWN}",
        "encoder": f"{size.encoder_depth} blocks, {size.width} wide, {count(encoder)}",
        "decoder": f"{size.decoder_depth} blocks, {size.width} wide, {count(decoder)}",
        "text": text if own else stranger,
        "prediction": {
            "flow": "clean tokens, on a flow path", "wiener": "clean tokens and their variance, on a flow path",
            "iddpm": "noise and variance",
        }[config.prediction],
        "sampling": f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance}, "
        f"temperature {sampling.temperature}",
        "fingerprint": fingerprint(config, encoder),
    }
    return "\n".join(f"{name:12} {value}" for name, value in rows.items())


def count(tensors: Mapping[str, Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors.values()) / 1e6:.2f} M parameters"
