"""Endless batches of scenes, a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..core.masks import to_grid
from ..scenes import Sample, random_sample


class Batch(NamedTuple):
    image: Tensor  # [B, 3, H, W] uint8
    mask: Tensor  # [B, 1, H, W] uint8, 1 = hole
    captions: list[str]


def collate(samples: list[Sample]) -> Batch:
    image = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    mask = torch.from_numpy(np.stack([sample.mask for sample in samples]))[:, None].to(torch.uint8)
    return Batch(image.contiguous(), mask, [sample.caption for sample in samples])


class SceneStream(IterableDataset[Batch]):
    """Batches `start`, `start + 1`, … of one process of a run.

    Every batch is drawn from a pool of `pool` batches sorted by the number of hole tokens, so that little is padded.
    With several loader workers, worker w makes every workers-th batch; the order does not depend on their speed.
    """

    def __init__(self, seed: int, rank: int, batch: int, token: int, pool: int = 16, start: int = 0):
        self.seed, self.rank, self.batch, self.token, self.pool, self.start = seed, rank, batch, token, pool, start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        streams, number = (worker.num_workers, worker.id) if worker else (1, 0)
        stream = (number + self.start) % streams
        position = (self.start - stream + streams - 1) // streams
        while True:
            batches = self._pool(stream, position // self.pool)
            for batch in batches[position % self.pool :]:
                yield collate(batch)
                position += 1

    def _pool(self, stream: int, number: int) -> list[list[Sample]]:
        rng = np.random.default_rng([self.seed, self.rank, stream, number])
        samples = [random_sample(rng) for _ in range(self.pool * self.batch)]
        samples.sort(key=self._tokens)
        batches = [samples[i : i + self.batch] for i in range(0, len(samples), self.batch)]
        # All processes take batches of about the same size at the same time, so that none waits for another.
        order = np.random.default_rng([self.seed, stream, number]).permutation(len(batches))
        return [batches[i] for i in order]

    def _tokens(self, sample: Sample) -> int:
        return int(to_grid(torch.from_numpy(sample.mask)[None, None].float(), self.token).sum())
