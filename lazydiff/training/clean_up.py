"""Training of the convolutions that clean up what a model's own latent space decodes.

They learn from what its sampler makes: a picture is noised a little way and sampled back, so that it shows what it
showed before, with the borders and the grain that sampling leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..core.checks import Range, check_ranges
from ..core.pictures import from_array
from ..data.shards import expand_shards, read_shard
from ..model.checkpoint import save_checkpoint
from ..model.latent_space import CleanUp, PatchPCA
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.decode import to_latents
from ..pipeline.encode import encode
from ..pipeline.sample import SampleSettings, sample

PART = 128  # px per side of what is learned from at a time
LIMITS = {
    "steps": Range(1, 10**9, whole=True), "pictures": Range(1, 10**6, whole=True), "width": Range(1, 4096, whole=True),
    "batch": Range(1, 2**16, whole=True), "learning_rate": Range(0, 10, above=True),
    "weakest": Range(0, 1, above=True), "strongest": Range(0, 1, above=True), "seed": Range(0, 2**32 - 1, whole=True),
}  # fmt: skip


@dataclass(frozen=True)
class CleanUpTraining:
    """Settings of a run.

    pictures: that are sampled once, before any step; width: of the convolutions; batch: parts of pictures to a step
    weakest, strongest: how far pictures are noised, as a sketch's strength
    """

    steps: int = 3000
    pictures: int = 400
    width: int = 128
    batch: int = 16
    learning_rate: float = 1e-3
    weakest: float = 0.15
    strongest: float = 0.6
    seed: int = 0

    def check(self) -> None:
        """Errors: ValueError for settings that no training can have."""
        check_ranges(self, LIMITS)
        if self.weakest > self.strongest:
            raise ValueError(f"weakest is {self.weakest} and strongest {self.strongest}: give the smaller one first")


class CodedPicture(NamedTuple):
    """What cells decode to and what it should be, [1, 3, H, W] in -1…1, and where it was sampled, [1, 1, H, W]."""

    coded: Tensor
    truth: Tensor
    mask: Tensor


def train_clean_up(model: LazyDiffusion, data: str, training: CleanUpTraining, path: Path) -> LazyDiffusion:
    """Write a checkpoint of a model with newly trained convolutions; all else stays as it was.

    data: pattern of prepared shards with pictures
    Errors: ValueError for a model without a latent space of its own, or shards without pictures for it.
    """
    training.check()
    if not isinstance(model.latent, PatchPCA):
        raise ValueError(f"{model.config.name} has no latent space of its own: its VAE is trained elsewhere")
    shards = expand_shards(data)
    torch.manual_seed(training.seed)
    pool = list(tqdm(coded_pictures(model, shards, training), total=training.pictures, unit="picture"))
    if not pool:
        raise ValueError(f"{data}: no pictures")
    network = CleanUp(training.width, model.latent.cell).to(model.device)
    optimiser = torch.optim.AdamW(network.parameters(), training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, training.learning_rate, total_steps=training.steps)
    rng = np.random.default_rng(training.seed)
    bar = tqdm(range(training.steps), unit="step")
    for _ in bar:
        parts = [random_part(pool[int(rng.integers(len(pool)))], model.latent.cell, rng) for _ in range(training.batch)]
        coded, truth, mask = (torch.cat(each) for each in zip(*parts, strict=True))
        with torch.enable_grad():
            loss = clean_up_loss(network(coded), truth, mask)
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
    model.latent.clean_up = network.eval().requires_grad_(False)
    model.config = replace(model.config, clean_up=training.width)
    save_checkpoint(model, path)
    return model


def coded_pictures(model: LazyDiffusion, shards: list[str], training: CleanUpTraining) -> Iterator[CodedPicture]:
    """Pictures of shards, in whose first hole is what the sampler makes of themselves."""
    rng = np.random.default_rng([training.seed, 1])
    samples = chain.from_iterable(map(read_shard, shards))
    for number, prepared in enumerate(islice(samples, training.pictures)):
        image = from_array(prepared.picture()).to(model.device)
        mask = torch.from_numpy(prepared.mask(0))[None, None].float().to(model.device)
        strength = float(rng.uniform(training.weakest, training.strongest))
        context = encode(model, image, mask)
        settings = SampleSettings(sketch=image, strength=strength)
        tokens = sample(model, context, [prepared.captions[0]], [number], settings)
        yield CodedPicture(model.latent.decode_cells(to_latents(context, tokens)), image * 2 - 1, mask)


def random_part(picture: CodedPicture, cell: int, rng: np.random.Generator) -> CodedPicture:
    """A square of whole cells around a place in the hole; a smaller picture whole."""
    places = picture.mask[0, 0].nonzero()
    middle = places[int(rng.integers(len(places)))].tolist()
    room = [max(side - PART, 0) for side in picture.mask.shape[-2:]]
    starts = [min(max(at - PART // 2, 0), most) // cell * cell for at, most in zip(middle, room, strict=True)]
    rows, columns = (slice(start, start + PART) for start in starts)
    return CodedPicture(*(each[..., rows, columns] for each in picture))


def clean_up_loss(made: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error in the hole, of pixels and of their differences to the next ones, in which borders show."""
    error = made - truth
    total = (error.abs() * mask).sum() / mask.sum()
    for axis in (2, 3):
        inside = mask.narrow(axis, 1, mask.shape[axis] - 1) * mask.narrow(axis, 0, mask.shape[axis] - 1)
        total = total + (error.diff(dim=axis).abs() * inside).sum() / inside.sum().clamp(min=1)
    return total / 3
