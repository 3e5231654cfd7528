"""Reading prepared shards against a training step on the same core: time per example, and memory over many.

    python -m benchmarks.data --output DIR [--repeat 3] [--quick]

Prints a table and writes `data.json`. Scenes are prepared into a temporary folder as `python -m lazydiff prepare` does
it; a step is that of the small model, of its own batch and noise levels. Beside it, reading shards with latents and
text features as those of pictures of 512 and 1024 px are (random numbers of the same sizes, three holes each).

Times are processor time of one thread.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lazydiff.data.batch import Batch
from lazydiff.data.prepare import prepare_shards
from lazydiff.data.samples import Preparation
from lazydiff.data.shards import (
    DESCRIPTION,
    LATENT,
    PICTURE,
    TEXT,
    LatentOrigin,
    ShardHeader,
    TextOrigin,
    describe_sample,
    picture_bytes,
    tensor_bytes,
    write_shard,
)
from lazydiff.data.sources import SceneSource
from lazydiff.data.stream import ExampleStream, ReadingPlan, ShardExamples, read_batches
from lazydiff.evaluation.laboratory import SMALL
from lazydiff.model.layers import explicit_attention
from lazydiff.scenes import CANVAS
from lazydiff.training.config import TrainingConfig
from lazydiff.training.objective import Objective
from lazydiff.training.start import new_model

from .harness import Harness, arguments

SCENES, QUICK_SCENES = 1000, 200
READ, QUICK_READ = 20_000, 800  # examples, over which memory may not grow
TIMED = 400  # examples of one timing
SIZES = (512, 1024)  # px of the pictures of the prepared rows
STORED = 48  # samples of their shards
WORDS, WIDTH, HOLES = 30, 4096, 3  # tokens of a caption and T5-XXL's features; holes of a picture


@dataclass(frozen=True)
class Row:
    """Reading one kind of shard: milliseconds and kilobytes of one example."""

    shards: str
    milliseconds: float
    kilobytes: float


def batches(pattern: str, batch: int, token: int) -> Iterator[list[Batch]]:
    return read_batches(ExampleStream(ShardExamples(pattern, 0), ReadingPlan(0, batch, 1, token), range(1)), 1)


def scene_shards(folder: Path, scenes: int) -> str:
    prepare_shards(SceneSource(scenes, CANVAS, 0), folder, Preparation(CANVAS, smallest=CANVAS, shard_size=scenes // 2))
    return f"{folder}/*.tar"


def encoded_shard(path: Path, size: int) -> str:
    """Random latents and features as those of pictures of that size."""
    rng, cells = np.random.default_rng(0), size // 8
    header = ShardHeader(size, vae=LatentOrigin("", 8, 4), text=TextOrigin("", WIDTH, 120))
    with write_shard(path, header) as shard:
        for number in range(STORED):
            masks = np.zeros((HOLES, size, size), bool)
            for mask in masks:
                y, x = rng.integers(0, size * 2 // 3, 2)
                mask[y : y + size // 3, x : x + size // 3] = True
            latents = {name: torch.randn(4, cells, cells) for name in ("mean", "deviation")}
            latents |= {f"visible.{name}": torch.randn(HOLES, 4, cells, cells) for name in ("mean", "deviation")}
            features = {name: torch.randn(WORDS, WIDTH) for name in ("0", "1", "2", "empty")}
            shard.add(f"{number}", {
                PICTURE: picture_bytes(rng.integers(0, 256, (size, size, 3), np.uint8)),
                DESCRIPTION: describe_sample("", [("", mask) for mask in masks]),
                LATENT: tensor_bytes(latents), TEXT: tensor_bytes(features),
            })  # fmt: skip
    return str(path)


def read_examples(rows: Iterator[list[Batch]], number: int) -> int:
    """Read at least so many; how many there were."""
    done = 0
    while done < number:
        done += sum(len(batch.seeds) for batch in next(rows))
    return done


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, f"{QUICK_SCENES} scenes, {QUICK_READ} examples", repeat=3)
    harness = Harness.of(parser.parse_args(argv))
    config = TrainingConfig.read(SMALL.with_suffix(".toml"))
    network, size = config.model.network, config.batch // config.readers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patterns = {f"scenes, {CANVAS} px": scene_shards(folder / "scenes", QUICK_SCENES if harness.quick else SCENES)}
        for side in SIZES:
            patterns[f"latents and features, {side} px"] = encoded_shard(folder / f"{side}.tar", side)

        model = new_model(config, ShardExamples(next(iter(patterns.values())), 0), explicit_attention)
        objective = Objective(model, config)
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
        rows = {kind: batches(pattern, size, network.token) for kind, pattern in patterns.items()}
        [batch] = next(rows[f"scenes, {CANVAS} px"])

        def step() -> None:
            optimiser.zero_grad()
            objective(batch, 0).backward()
            optimiser.step()

        calls = [step, *(lambda row=row: read_examples(row, TIMED) for row in rows.values())]  # type: ignore[misc]
        trained, *read = harness.medians(calls)
        trained /= size
        table = [
            Row(kind, milliseconds / TIMED, stored_kilobytes(pattern))
            for (kind, pattern), milliseconds in zip(patterns.items(), read, strict=True)
        ]
        scenes = rows[f"scenes, {CANVAS} px"]
        number = QUICK_READ if harness.quick else READ
        read_examples(scenes, number // 10)
        before, done = peak_mb(), 0
        with tqdm(total=number, unit=" examples") as bar:
            while done < number:
                done += (some := read_examples(scenes, 100))
                bar.update(some)
        growth = peak_mb() - before

    for row in table:
        print(f"{row.shards:32} {row.milliseconds:7.3f} ms {row.kilobytes:8.1f} kB")
    print(f"{'a step of the small model':32} {trained:7.1f} ms an example")
    figures = {"reader_over_step": trained / table[0].milliseconds, "reader_growth_mb": growth}
    harness.write(
        "data", {name: round(value, 2) for name, value in figures.items()}, step_ms=trained, examples_read=done,
        table=[asdict(row) for row in table],
    )  # fmt: skip


def stored_kilobytes(pattern: str) -> float:
    """Of a sample, the shards' own share included."""
    shards = ShardExamples(pattern, 0)
    size = sum(Path(url).stat().st_size for url in shards.urls)
    return size / 1024 / sum(shards.checked(url).samples for url in shards.urls)


if __name__ == "__main__":
    main()
