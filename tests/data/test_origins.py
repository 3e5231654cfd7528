"""A model that is trained on shards remembers what they are of, and takes no others."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from public_folders import NETWORK

from lazydiff.data.origins import record_origins
from lazydiff.data.shards import LatentOrigin, ShardHeader, TextOrigin
from lazydiff.model.config import SHIPPED, ModelConfig
from lazydiff.model.lazydiffusion import fingerprint
from lazydiff.model.metadata import METADATA, metadata_of, read_config

VAE, TEXT = LatentOrigin("0123456789abcdef", 8, 4), TextOrigin("fedcba9876543210", 16, 120)
HEADER = ShardHeader(64, vae=VAE, text=TEXT)
CONFIG = ModelConfig(NETWORK, "iddpm", "tiny")


def test_the_shards_parts_are_written_into_the_checkpoint() -> None:
    trained = record_origins(CONFIG, HEADER)
    trained.check()
    assert (trained.vae, trained.text_encoder) == (VAE.fingerprint, TEXT.fingerprint)
    assert read_config(SHIPPED, metadata_of(trained)) == trained
    assert fingerprint(trained, {}) == fingerprint(CONFIG, {})  # contexts and gates stay valid
    assert record_origins(trained, HEADER) == trained
    assert record_origins(trained, ShardHeader(64)) == trained  # shards without either


def test_what_nobody_has_written_down_leaves_no_mark() -> None:
    """Checkpoints of a model with parts of its own are as they have always been, for older versions too."""
    values = json.loads(metadata_of(CONFIG)[METADATA])
    assert "vae" not in values and "text_encoder" not in values
    assert read_config(SHIPPED, metadata_of(CONFIG)) == CONFIG


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vae": replace(VAE, fingerprint="0" * 16)}, r"another VAE \(0123456789abcdef\) than the shards' \(0{16}\)"),
        ({"text": replace(TEXT, fingerprint="0" * 16)}, r"text encoder \(fedcba9876543210\) than .* \(0{16}\)"),
        ({"vae": replace(VAE, channels=16)}, "latents' channels: 16, the model's: 4"),
        ({"vae": replace(VAE, cell=16)}, "px per cell: 16, the model's: 8"),
        ({"text": replace(TEXT, width=4096)}, "text features' width: 4096, the model's: 16"),
        ({"size": 96}, "pictures' side in px: 96, the model's: 64"),
    ],
)
def test_other_shards_are_refused(change: dict[str, object], message: str) -> None:
    trained = record_origins(CONFIG, HEADER)
    with pytest.raises(ValueError, match=message):
        record_origins(trained, replace(HEADER, **change))  # type: ignore[arg-type]
