"""The endless order of a training's examples: a function of its seed, whoever reads it.

The order is divided into readers. Each reader has examples of its own, of scenes or of shards, and gives the same
number of them to every step, so that a step has the same examples however many processes, loader workers or
micro-batches share the work, and a run that was stopped goes on at the very example.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from itertools import chain, count, islice
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..scenes import Sample, all_captions, random_sample
from .batch import Batch, Example, collate, prepared_example
from .shards import ShardError, ShardHeader, expand_shards, read_header, read_shard

POOL = 16  # steps whose examples are sorted together by their number of hole tokens, so that little is padded
SEEDS = 2**62
CAPTIONS = 20000  # are enough for a vocabulary


class Examples(Protocol):
    """Where examples come from: an endless row of them for each reader.

    header: of shards, None of a world that is drawn
    name: by which a training that goes on knows that they are the same
    """

    @property
    def header(self) -> ShardHeader | None: ...

    @property
    def name(self) -> str: ...

    def read(self, reader: int, readers: int, start: int) -> Iterator[Example]:
        """The examples start, start + 1, … of one of several readers."""
        ...

    def captions(self) -> list[str]:
        """What a vocabulary is made of."""
        ...

    def pictures(self, number: int, seed: int) -> np.ndarray:
        """At most so many, uint8 [N, H, W, 3], which a latent space is fitted to."""
        ...


class SceneExamples:
    """The built-in world: each example is drawn from its own number."""

    header: ShardHeader | None = None
    name = "scenes"

    def __init__(self, seed: int):
        self.seed = seed

    def sample(self, rng: np.random.Generator) -> Sample:
        return random_sample(rng)

    def captions(self) -> list[str]:
        return all_captions()

    def pictures(self, number: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, number])
        return np.stack([self.sample(rng).image for _ in range(number)])

    def read(self, reader: int, readers: int, start: int) -> Iterator[Example]:
        for number in count(start):
            rng = np.random.default_rng([self.seed, reader, number])
            sample = self.sample(rng)
            yield Example(int(rng.integers(SEEDS)), sample.mask, sample.caption, sample.image)


class ShardExamples:
    """Prepared shards, epoch after epoch, each in an order of its own; of a picture's holes one is drawn each time.

    pattern: see `expand_shards`
    Errors: ValueError for no shards, at once; `ShardError` for a shard that is damaged or unlike the first, when its
    turn comes.
    """

    def __init__(self, pattern: str, seed: int):
        self.urls, self.seed = expand_shards(pattern), seed
        self.header = read_header(self.urls[0])

    @property
    def name(self) -> str:
        """Of the shards' files, wherever they lie."""
        files = "\n".join(url.rsplit("/", 1)[-1] for url in self.urls)
        return f"{len(self.urls)} shards, {sha256(files.encode()).hexdigest()[:16]}"

    def captions(self) -> list[str]:
        """Of the first shards, which are as mixed as all."""
        samples = chain.from_iterable(map(read_shard, self.urls))
        found = chain.from_iterable((sample.caption, *sample.captions) for sample in samples)
        return list(islice(found, CAPTIONS))

    def pictures(self, number: int, seed: int) -> np.ndarray:
        samples = chain.from_iterable(map(read_shard, self.urls))
        return np.stack([sample.picture() for sample in islice(samples, number)])

    def read(self, reader: int, readers: int, start: int) -> Iterator[Example]:
        self.check_readers(readers)
        number = 0
        for url in chain.from_iterable(self.epoch(epoch)[reader::readers] for epoch in count()):
            samples = self.checked(url).samples
            if number + samples > start:
                for sample in islice(read_shard(url), max(start - number, 0), None):
                    rng = np.random.default_rng([self.seed, reader, max(number, start)])
                    hole = int(rng.integers(len(sample.captions)))
                    yield prepared_example(sample, hole, int(rng.integers(SEEDS)))
                    number = max(number, start) + 1
            else:
                number += samples

    def check_readers(self, readers: int) -> None:
        """Errors: ValueError for fewer shards than readers."""
        if readers > len(self.urls):
            raise ValueError(
                f"{len(self.urls)} shards for {readers} readers: prepare smaller ones (--shard-size), or give the "
                "configuration fewer readers"
            )

    def epoch(self, number: int) -> list[str]:
        """All shards in the order of one epoch."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.urls))
        return [self.urls[i] for i in order]

    def checked(self, url: str) -> ShardHeader:
        """Its header, if it goes together with the first one's."""
        header = shard_header(url)
        if not header.samples:
            raise ShardError(f"{url}: it has no samples")
        for name in ("size", "crop", "vae", "text"):
            here, there = getattr(header, name), getattr(self.header, name)
            if here != there:
                known = [getattr(value, "fingerprint", value) for value in (here, there)]
                raise ShardError(
                    f"{url}: it was prepared with another {name} ({known[0]}) than {self.urls[0]} ({known[1]})"
                )
        return header


shard_header = lru_cache(maxsize=None)(read_header)  # each is asked for in every epoch


class ReadingPlan(NamedTuple):
    """How examples are shared out.

    batch: of every step, over all readers; token: px per side
    """

    seed: int
    batch: int
    readers: int
    token: int


class ExampleStream(IterableDataset[Any]):
    """The part of every step from `start` on that one process reads: lists of examples, one for each of its readers.

    share: the process's readers
    Loader workers take its readers in turn: their number must divide that of the readers.
    """

    def __init__(self, examples: Examples, plan: ReadingPlan, share: range, start: int = 0):
        self.examples, self.plan, self.share, self.start = examples, plan, share, start

    def __iter__(self) -> Iterator[list[Example] | Exception]:
        """What cannot be read is given out and ends it, because a loader would put its worker's traceback around it."""
        worker = get_worker_info()
        share = self.share[worker.id :: worker.num_workers] if worker else self.share
        rows = [self.steps_of(reader) for reader in share]
        try:
            while True:
                yield from (next(row) for row in rows)
        except (ValueError, OSError) as error:
            yield error

    def steps_of(self, reader: int) -> Iterator[list[Example]]:
        """What one reader gives to each step."""
        each = self.plan.batch // self.plan.readers
        first = self.start // POOL
        examples = self.examples.read(reader, self.plan.readers, first * POOL * each)
        for pool in count(first):
            sorted_examples = sorted(islice(examples, POOL * each), key=self.tokens)
            # All readers give parts of about the same size at the same time, so that no process waits for another.
            order = np.random.default_rng([self.plan.seed, pool]).permutation(POOL)
            skipped = self.start % POOL if pool == first else 0
            yield from (sorted_examples[i * each : (i + 1) * each] for i in order[skipped:].tolist())

    def tokens(self, example: Example) -> int:
        """How many tokens its hole touches."""
        side = self.plan.token
        mask = example.mask.reshape(example.mask.shape[0] // side, side, example.mask.shape[1] // side, side)
        return int(mask.any((1, 3)).sum())


def read_batches(stream: ExampleStream, micro_batches: int, workers: int = 0) -> Iterator[list[Batch]]:
    """A process's share of each step in turn, cut into batches of equal size.

    workers: loader processes at most
    """
    readers = len(stream.share)
    workers = max((number for number in range(1, workers + 1) if readers % number == 0), default=0)
    lists = iter(DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=as_it_is))
    while True:
        examples = [example for part in islice(lists, readers) for example in readable(part)]
        size = len(examples) // micro_batches
        yield [collate(examples[i * size : (i + 1) * size]) for i in range(micro_batches)]


def as_it_is(part: Any) -> Any:
    """Keeps a loader from making tensors of it."""
    return part


def readable(part: list[Example] | Exception) -> list[Example]:
    """What a stream has given out. Errors: the one that it has met."""
    if isinstance(part, Exception):
        raise part
    return part
