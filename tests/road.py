"""The road from a folder of pictures to an edit, by the commands that people type, with public networks of next to no
size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from public_folders import NETWORK, WORDS, save_clip, save_inception, save_pixart, save_text_encoder, save_vae

from lazydiff.cli import main
from lazydiff.model.config import PRESETS

SIZE = NETWORK.canvas
PICTURES = 6
CONFIG = """
[model]
name = "road"
preset = "{preset}"
prediction = "iddpm"

[sampling]
sampler = "iddpm"
steps = 2
guidance = 4.5

[training]
steps = 4
batch = 4
accumulate = 2
learning_rate = 2e-5
eps = 1e-10
clip = 0.01
ema = 0.9
drop_text = 0.1
noise_levels = 1
warm_up = 2
decay_from = 1.0
precision = "bf16"
checkpointing = true
workers = 0
checkpoint_every = 2
picture_every = 4
crop = {crop}
"""
# of LazyDiffusion and the paper's two baselines, as the configurations at size have them
KINDS = {
    "lazy": NETWORK,
    "image": replace(NETWORK, encoder_depth=0),
    "crop": replace(NETWORK, encoder_depth=0, canvas=SIZE // 2),
}


@dataclass(frozen=True)
class Road:
    """What lies along it."""

    folder: Path

    @property
    def parts(self) -> list[str]:
        return ["--vae", f"{self.folder}/public/vae", "--text-encoder", f"{self.folder}/public"]

    @property
    def shards(self) -> str:
        return f"{self.folder}/shards-lazy/*.tar"

    def checkpoint(self, kind: str) -> str:
        return f"{self.folder}/run-{kind}/model.safetensors"

    def do(self, command: str, *options: object) -> None:
        assert main([command, *map(str, options)]) == 0


@contextmanager
def as_in_a_process_of_its_own() -> Iterator[None]:
    """Presets of next to no size; and accelerate, which takes one number type per process, begins anew."""
    AcceleratorState._reset_state(True)
    with patch.dict(PRESETS, {f"tiny-{kind}": network for kind, network in KINDS.items()}):
        yield
    AcceleratorState._reset_state(True)


def set_out(folder: Path) -> Road:
    """Pictures with masks and captions, and public networks."""
    torch.manual_seed(0)
    rng, pictures = np.random.default_rng(0), folder / "pictures"
    pictures.mkdir()
    for number in range(PICTURES):
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((90 + number, 80), Image.Resampling.BICUBIC).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(WORDS[number])
        mask = np.zeros((80, 90 + number), np.uint8)
        mask[20:50, 30 : 60 + number] = 255
        Image.fromarray(mask).save(pictures / f"{number}.mask.png")
        (pictures / f"{number}.mask.txt").write_text(WORDS[-1 - number])
    save_text_encoder(folder / "public")
    save_vae(folder / "public" / "vae")
    save_inception(folder / "inception.pt")
    save_clip(folder / "clip")
    save_pixart(folder / "pixart.safetensors")
    return Road(folder)


def prepare_and_train(road: Road, *kinds: str) -> None:
    with as_in_a_process_of_its_own():
        for kind in kinds:
            crop = kind == "crop"
            size = KINDS[kind].canvas
            road.do(
                "prepare", "--images", road.folder / "pictures", *road.parts, "--size", size, "--smallest", SIZE,
                "--shard-size", 3, "--output", road.folder / f"shards-{kind}", *(["--crop"] if crop else []),
            )  # fmt: skip
            config = road.folder / f"{kind}.toml"
            config.write_text(CONFIG.format(preset=f"tiny-{kind}", crop=str(crop).lower()))
            road.do(
                "train", "--config", config, "--data", road.folder / f"shards-{kind}" / "*.tar", "--vae",
                road.folder / "public" / "vae", "--initialise", road.folder / "pixart.safetensors", "--device", "cpu",
                "--output", road.folder / f"run-{kind}",
            )  # fmt: skip
