"""Train a small text-to-image model of portraits, one large thing before a surface, for `published_masks.py`.

    python -m benchmarks.portraits --output DIR [--pictures 16000] [--steps 3000] [--seed 0]

Captions tell the whole picture ("a striped red apple before green cloth"), the hole is the whole canvas, and one in ten
captions is dropped: what the methods of InstDiffEdit and FISEdit expect of a model. 128 px are 16×16 tokens, as Stable
Diffusion's attention maps of 512 px are, and a thing covers a fifth of them or more. Writes the shards, and
`model.safetensors` with its log; the same command goes on where a stopped run was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from lazydiff.core.pictures import from_array
from lazydiff.data.entities import Entity
from lazydiff.data.prepare import prepare_shards
from lazydiff.data.samples import Preparation
from lazydiff.data.sources import Picture, SourceItem, divided
from lazydiff.data.stream import ShardExamples
from lazydiff.model.config import PRESETS, ModelConfig, Sampling
from lazydiff.training.config import TrainingConfig
from lazydiff.training.start import Material
from lazydiff.training.train import train
from lazydiff.world import (
    FAMILIES,
    PlacedItem,
    WorldScene,
    describe_backdrop,
    describe_item,
    draw_scene,
    item_silhouette,
    other_item,
    place_item,
    random_backdrop,
    random_item,
    random_light,
)

from .harness import Harness

SIZE = 128  # px
LEAST = 0.2  # of the canvas that the thing covers
SIDES = 0.6, 0.9  # of a thing's box, in sides of the picture
SURFACES = tuple(family for family, surfaces in FAMILIES.items() if len(surfaces) == 1)
SHARD = 1000  # pictures
MODEL = ModelConfig(
    replace(PRESETS["small-image"], canvas=SIZE, channels=64), "flow", "portraits", sampling=Sampling("euler", 50, 3.0)
)


@dataclass(frozen=True)
class Portrait:
    """One thing before a surface."""

    scene: WorldScene

    @property
    def thing(self) -> PlacedItem:
        return self.scene.items[0]

    @property
    def caption(self) -> str:
        return f"{describe_item(self.thing.item)} before {describe_backdrop(self.scene.backdrop, 'all')}"

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [128, 128, 3]"""
        return draw_scene(self.scene, SIZE)

    @property
    def image(self) -> Tensor:
        """[1, 3, 128, 128] in 0…1"""
        return from_array(self.pixels)

    @property
    def silhouette(self) -> np.ndarray:
        """The thing without its shadow, bool [128, 128]."""
        return item_silhouette(self.thing, self.scene.light, SIZE)

    def with_another_thing(self, rng: np.random.Generator) -> Portrait:
        """One of another kind and colour in its place."""
        item = self.thing.item
        while item.kind == self.thing.item.kind:
            item = other_item(rng, self.thing.item)
        return Portrait(replace(self.scene, items=(replace(self.thing, item=item),)))


def random_portrait(rng: np.random.Generator) -> Portrait:
    while True:
        backdrop, light = random_backdrop(rng, SURFACES), random_light(rng)
        thing = place_item(rng, backdrop, random_item(rng), float(rng.uniform(*SIDES)))
        found = Portrait(WorldScene(backdrop, light, (thing,)))
        if found.silhouette.mean() >= LEAST:
            return found


@dataclass(frozen=True)
class PortraitNumber:
    seed: int
    number: int

    @property
    def key(self) -> str:
        return f"{self.number:06d}"

    def read(self) -> Picture:
        portrait = random_portrait(np.random.default_rng([self.seed, self.number]))
        everything = Entity.of_mask(np.ones((SIZE, SIZE), bool), portrait.caption)
        return Picture(Image.fromarray(portrait.pixels), portrait.caption, holes=[everything])


@dataclass(frozen=True)
class PortraitSource:
    """So many portraits, each with the whole canvas as its hole."""

    count: int
    seed: int

    @property
    def identity(self) -> str:
        return f"{self.count} portraits of seed {self.seed}"

    def units(self, pictures: int) -> Sequence[Iterable[SourceItem]]:
        return divided([PortraitNumber(self.seed, number) for number in range(self.count)], pictures)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=16000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    Harness(args.output)
    shards = args.output / "shards"
    prepare_shards(PortraitSource(args.pictures, args.seed), shards, Preparation(SIZE, smallest=SIZE, shard_size=SHARD))
    config = TrainingConfig(
        MODEL, seed=args.seed, steps=args.steps, noise_levels=1, noise_mean=-0.7, noise_deviation=1.3,
        checkpoint_every=250,
    )  # fmt: skip
    train(config, args.output, Material(ShardExamples(f"{shards}/*.tar", args.seed)))


if __name__ == "__main__":
    main()
