"""The order of examples: a function of the seed, whoever reads it, from wherever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from data.test_shards import HEADER, write

from lazydiff.core.masks import to_grid
from lazydiff.data.batch import Batch, Example, collate
from lazydiff.data.shards import LatentOrigin, ShardError, read_shard
from lazydiff.data.stream import (
    POOL,
    Examples,
    ExampleStream,
    ReadingPlan,
    SceneExamples,
    ShardExamples,
    read_batches,
)

COUNTS = (3, 5, 2, 4)  # samples of each shard


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for number, samples in enumerate(COUNTS):
        write(folder / f"{number}.tar", samples, first=sum(COUNTS[:number]))
    return f"{folder}/*.tar"


def taken(examples: Examples, plan: ReadingPlan, share: range, start: int = 0, **how: int) -> Iterator[list[Batch]]:
    return read_batches(ExampleStream(examples, plan, share, start), how.get("micro", 1), how.get("workers", 0))


def seeds(batches: list[Batch]) -> list[int]:
    return [seed for batch in batches for seed in batch.seeds]


def test_an_epoch_has_every_picture_once(pattern: str) -> None:
    """Of each of two readers, who share the shards."""
    captions: list[str] = []
    for reader in range(2):
        examples = ShardExamples(pattern, seed=3)
        mine = examples.epoch(0)[reader::2]
        number = sum(COUNTS[int(Path(url).stem)] for url in mine)
        for example in islice(examples.read(reader, 2, 0), number):
            sample = next(s for url in mine for s in read_shard(url) if (s.mask(0) == example.mask).all()
                          or (s.mask(1) == example.mask).all())  # fmt: skip
            captions.append(sample.caption)
    assert sorted(captions) == sorted(f"whole {i}" for i in range(sum(COUNTS)))
    assert len({tuple(ShardExamples(pattern, 3).epoch(i)) for i in range(8)}) > 1


@pytest.mark.parametrize("start", [0, 1, 5, 16, 37])
@pytest.mark.parametrize("world", ["scenes", "shards"])
def test_a_run_goes_on_at_the_very_example(start: int, world: str, pattern: str) -> None:
    examples = SceneExamples(5) if world == "scenes" else ShardExamples(pattern, 5)
    plan = ReadingPlan(5, 4, 2, 8)
    whole = list(islice(taken(examples, plan, range(2)), start, start + 3))
    resumed = list(islice(taken(examples, plan, range(2), start), 3))
    for [a], [b] in zip(whole, resumed, strict=True):
        assert a.seeds == b.seeds and a.captions == b.captions and torch.equal(a.mask, b.mask)
        for x, y in ((a.image, b.image), (a.latents, b.latents)):
            assert (x is None and y is None) or torch.equal(x, y)  # type: ignore[arg-type]


@pytest.mark.parametrize(("processes", "micro", "workers"), [(1, 4, 0), (2, 1, 0), (2, 2, 1), (1, 1, 2), (1, 2, 3)])
def test_a_step_has_the_same_examples_whoever_reads_them(
    processes: int, micro: int, workers: int, pattern: str
) -> None:
    plan, examples, steps = ReadingPlan(1, 8, 2, 8), ShardExamples(pattern, 1), POOL + 2
    alone = [seeds(step) for step in islice(taken(examples, plan, range(2)), steps)]
    shares = [range(rank * 2 // processes, (rank + 1) * 2 // processes) for rank in range(processes)]
    parts = [islice(taken(examples, plan, share, micro=micro, workers=workers), steps) for share in shares]
    for whole, *mine in zip(alone, *parts, strict=True):
        assert all(len(step) == micro and len({len(batch.seeds) for batch in step}) == 1 for step in mine)
        assert sum((seeds(step) for step in mine), []) == whole


def test_every_example_has_a_seed_of_its_own(pattern: str) -> None:
    for examples in (SceneExamples(0), ShardExamples(pattern, 0)):
        drawn = [e.seed for reader in range(2) for e in islice(examples.read(reader, 2, 0), 40)]
        assert len(set(drawn)) == 80


def test_batches_have_holes_of_similar_size() -> None:
    """A pool of them is sorted, and both readers are at the same sizes at the same time."""
    plan = ReadingPlan(0, 8, 2, 8)
    rows = [list(islice(taken(SceneExamples(0), plan, share), POOL)) for share in (range(1), range(1, 2))]
    each = [[to_grid(batch.mask.float(), 8).sum((1, 2, 3)) for [batch] in row] for row in rows]
    spread = np.mean([float(tokens.max() - tokens.min()) for row in each for tokens in row])
    everything = torch.cat(each[0])
    assert spread < 0.2 * float(everything.max() - everything.min())
    first, second = (torch.stack(row).float().mean(1) for row in each)
    assert float(torch.corrcoef(torch.stack((first, second)))[0, 1]) > 0.8


def test_pictures_come_where_no_latents_are(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", 3, replace(HEADER, vae=None, text=None))
    [batch] = next(taken(ShardExamples(str(tmp_path / "a.tar"), 0), ReadingPlan(0, 2, 1, 8), range(1)))
    assert batch.image is not None and batch.image.shape == (2, 3, 16, 16) and batch.latents is None
    assert batch.text is None and all(caption.startswith("a thing") for caption in batch.captions)


def test_prepared_parts_come_as_they_were_stored(pattern: str) -> None:
    example = next(ShardExamples(pattern, 0).read(0, 1, 0))
    batch = collate([example, example])
    assert batch.image is None and batch.latents is not None and batch.latents.shape == (2, 3, 4, 2, 2)
    assert batch.latents.dtype == torch.float16 and batch.text is not None and batch.text[0].shape == (3, 6)
    assert batch.mask.shape == (2, 1, 16, 16) and batch.mask.max() == 1


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (replace(HEADER, vae=LatentOrigin("of another", 8, 4)), "another vae"),
        (replace(HEADER, text=None), "another text"), (replace(HEADER, crop=True), "another crop"),
    ],
)  # fmt: skip
def test_shards_that_do_not_go_together_are_told(header: object, told: str, tmp_path: Path) -> None:
    write(tmp_path / "0.tar", 2)
    write(tmp_path / "1.tar", 2, header)  # type: ignore[arg-type]
    with pytest.raises(ShardError, match=rf"prepared with {told}"):
        list(islice(ShardExamples(f"{tmp_path}/*.tar", 0).read(0, 1, 0), 4))


def test_too_few_or_empty_shards_are_told(tmp_path: Path) -> None:
    url = write(tmp_path / "0.tar", 0)
    with pytest.raises(ShardError, match="no samples"):
        next(ShardExamples(url, 0).read(0, 1, 0))
    with pytest.raises(ValueError, match="1 shards for 2 readers"):
        next(ShardExamples(url, 0).read(1, 2, 0))


def test_a_shard_that_loses_its_end_is_told_when_its_turn_comes(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "0.tar", 3))
    path.write_bytes(path.read_bytes()[: -10240 - 2000])
    with pytest.raises(ShardError, match="prepare it again|damaged or missing"):
        list(islice(ShardExamples(str(path), 0).read(0, 1, 0), 4))


def test_examples_are_of_the_picture_and_hole_that_they_name() -> None:
    for example in islice(SceneExamples(2).read(1, 2, 7), 3):
        assert isinstance(example, Example) and example.image is not None
        assert example.mask.shape == example.image.shape[:2] and example.mask.any()
