"""Pictures that somebody brings: LazyDiffusion and its baselines fill holes of held-out shards, as in the paper's
Table 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from ..core.checks import Range, check_ranges
from ..core.files import check_file
from ..core.pictures import from_array, thumbnail
from ..data.shards import ShardError, read_header, read_shard
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.edit import edit
from ..pipeline.fit import Crop
from .edges import seam
from .evaluate import BLEND, SEED
from .metrics import ClipSimilarity, Inception, clip_folder, distance_of_features
from .pictures_report import EXAMPLES, METHODS, SHOWN, Measured, PageRow, write_pictures_report
from .regenerate import paint_baseline

Paint = Callable[[Tensor, Tensor, str, int], Tensor]  # canvas, mask, caption, seed -> the canvas with its hole filled
LIMITS = {"seed": Range(0, 2**32 - 1, whole=True)}


@dataclass(frozen=True)
class PictureSettings:
    """What is measured, and on how much.

    samples: the first so many pictures of the shards; all if not given
    seed: chooses a hole of each picture, and the noise
    inception: a TorchScript file, for FID; clip: a folder, for CLIPScore; without it that metric is left out
    """

    samples: int | None = None
    seed: int = SEED
    inception: Path | None = None
    clip: Path | None = None
    progress: bool = True


class Asked(NamedTuple):
    """A picture of a shard with one of its holes.

    truth, canvas: [1, 3, H, W] in 0…1, the second mid grey in the hole, so that no answer can leak through a VAE's
    receptive field; mask: [1, 1, H, W]
    """

    truth: Tensor
    canvas: Tensor
    mask: Tensor
    caption: str
    seed: int


class Networks(NamedTuple):
    """What judges pictures, as far as its weights were given."""

    inception: Inception | None
    similarity: ClipSimilarity | None
    device: torch.device

    @classmethod
    def of_settings(cls, settings: PictureSettings, device: torch.device) -> Networks:
        """Errors: ValueError for weights that cannot be used."""
        inception = Inception(settings.inception, device) if settings.inception else None
        return cls(inception, ClipSimilarity(settings.clip, device) if settings.clip else None, device)

    def features(self, image: Tensor) -> Tensor | None:
        return None if self.inception is None else self.inception(to_bytes(image).to(self.device)).cpu()


@dataclass
class Tally:
    """What one method's answers add up to."""

    networks: Networks
    distance: FrechetInceptionDistance | None = None
    seconds: list[float] = field(default_factory=list)
    seams: list[tuple[float, float]] = field(default_factory=list)  # of an answer, and of the truth
    clip: list[tuple[float, float]] = field(default_factory=list)  # of the whole picture, and around the hole
    changed: int = 0

    def add(self, asked: Asked, answer: Tensor, real: Tensor | None, seconds: float) -> None:
        """real: the features of the truth"""
        self.seconds.append(seconds)
        self.changed += int(((answer != asked.canvas) & (asked.mask == 0)).sum())
        if not (asked.mask > 0).all():  # else there is no edge
            hole = asked.mask[:, 0].numpy() > 0
            self.seams.append((jump(answer, hole), jump(asked.truth, hole)))
        if self.networks.similarity is not None:
            views = (answer, Crop.around(asked.mask).of(answer))
            whole, around = (self.networks.similarity(to_bytes(view)[0], asked.caption) for view in views)
            self.clip.append((whole, around))
        made = self.networks.features(answer)
        if made is not None and real is not None:
            self.distance = self.distance or distance_of_features(made.shape[1])
            self.distance.update(real, real=True)
            self.distance.update(made, real=False)

    def measured(self) -> Measured:
        clip, clip_hole = np.mean(self.clip, 0).tolist() if self.clip else (None, None)
        made, true = np.mean(self.seams, 0) if self.seams else (np.nan, np.nan)
        return Measured(
            clip=clip,
            fid=None if self.distance is None else float(self.distance.compute()),
            clip_hole=clip_hole,
            seam_ratio=float(made / true) if true > 0 else None,
            changed_outside=self.changed,
            seconds=float(np.median(self.seconds)),
        )


def evaluate_pictures(
    models: Mapping[str, LazyDiffusion], shards: Sequence[str], output: Path, settings: PictureSettings
) -> dict[str, Measured]:
    """Let models fill one hole in each picture of prepared shards, with their own sampler settings and Poisson
    blending, and measure the results.

    models: by names of METHODS, LazyDiffusion among them
    Writes evaluation.json, evaluation.md and pictures.png into `output`, all at the end: if interrupted, none.
    Errors: ValueError before any work for a model that is not what it is taken for, shards that cannot be used, or too
    few pictures; later for a damaged one.
    """
    for name, model in models.items():
        if model.config.network.dense != (name != METHODS[0]):
            does = "computes every token" if model.config.network.dense else "computes the hole alone"
            raise ValueError(f"{model.config.name} {does}: it cannot be measured as {name}")
        if name == METHODS[1] and model.config.network.canvas != models[METHODS[0]].config.network.canvas:
            side = model.config.network.canvas
            raise ValueError(f"{model.config.name} is for {side} px, another canvas: it cannot be measured as {name}")
    samples = check_pictures(shards, settings)
    device = models[METHODS[0]].device
    networks = Networks.of_settings(settings, device)
    paints = {name: painter(name, model) for name, model in models.items()}
    tallies = {name: Tally(networks) for name in models}
    examples: list[PageRow] = []

    with tqdm(total=samples * len(models), unit="edit", disable=not settings.progress) as bar:
        for number, asked in enumerate(questions_of_shards(shards, samples, settings.seed)):
            answers = {}
            real = networks.features(asked.truth)
            for name, paint in paints.items():
                work = partial(paint, asked.canvas, asked.mask, asked.caption, asked.seed)
                if number == 0:
                    work()  # to warm up
                seconds, answers[name] = timed(work, device)
                tallies[name].add(asked, answers[name], real, seconds)
                bar.update()
            if number < EXAMPLES:
                examples.append(page_row(asked, answers))

    rows = {name: tally.measured() for name, tally in tallies.items()}
    told = {
        "checkpoints": {name: model.config.name for name, model in models.items()}, "seed": settings.seed,
        "shards": list(shards), "pictures": samples, "size": read_header(shards[0]).size, "blend": BLEND,
        "sampling": {name: asdict(model.config.sampling) for name, model in models.items()}, "device": device.type,
        "inception": settings.inception and settings.inception.name, "clip": settings.clip and settings.clip.name,
    }  # fmt: skip
    write_pictures_report(output, rows, told, examples)
    return rows


def check_pictures(shards: Sequence[str], settings: PictureSettings) -> int:
    """How many pictures are asked for.

    Errors: ValueError for shards that cannot be used or have fewer, and weights that are not there.
    """
    check_ranges(settings, LIMITS)
    if settings.inception is not None:
        check_file(settings.inception)
    if settings.clip is not None:
        clip_folder(settings.clip)
    there = 0
    for url in shards:
        header = read_header(url)
        there += header.samples
        if header.crop:
            raise ShardError(f"{url}: its pictures are crops, for training RegenerateCrop: prepare whole ones")
    least = 1 if settings.inception is None else 2
    samples = there if settings.samples is None else settings.samples
    if not least <= samples <= there:
        needed = "; FID needs at least 2" if least == 2 else ""
        raise ValueError(f"{samples} pictures: choose {least} to {there}, which the shards have{needed}")
    return samples


def questions_of_shards(shards: Sequence[str], samples: int, seed: int) -> Iterator[Asked]:
    """The first pictures of shards, in their order. Errors: `ShardError` for a damaged one."""
    everything = (sample for url in shards for sample in read_shard(url))
    for number, sample in zip(range(samples), everything, strict=False):
        rng = np.random.default_rng([seed, number])
        hole = int(rng.integers(len(sample.holes)))
        truth, mask = from_array(sample.picture()), torch.from_numpy(sample.mask(hole))[None, None].float()
        canvas = torch.where(mask > 0, 0.5, truth)
        yield Asked(truth, canvas, mask, sample.captions[hole], int(rng.integers(2**32)))


def painter(name: str, model: LazyDiffusion) -> Paint:
    """How a method fills a hole."""
    if name == METHODS[0]:
        return lambda canvas, mask, caption, seed: edit(model, canvas, mask, caption, [seed], blend=BLEND)
    return partial(paint_baseline, model, crop=name == METHODS[2])


def timed(work: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds that it takes until its result is there, and that result."""
    synchronise(device)
    start = time.perf_counter()
    result = work()
    synchronise(device)
    return time.perf_counter() - start, result


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def to_bytes(image: Tensor) -> Tensor:
    """0…1 -> uint8"""
    return (image * 255).round().byte()


def jump(image: Tensor, hole: np.ndarray) -> float:
    """Across the edge of a hole, bool [1, H, W]: see `seam`."""
    return seam(to_bytes(image).movedim(1, -1).numpy(), hole)


def page_row(asked: Asked, answers: Mapping[str, Tensor]) -> PageRow:
    """Small copies for the page of pictures."""
    hole, *pictures = (thumbnail(image[0], SHOWN) for image in (asked.mask, asked.truth, *answers.values()))
    return PageRow(asked.caption, hole, pictures[0], dict(zip(answers, pictures[1:], strict=True)))
