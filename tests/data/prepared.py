"""Preparations of small pictures, and what they have written."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from lazydiff.data.prepare import prepare_shards
from lazydiff.data.samples import Preparation
from lazydiff.data.shards import ShardSample, read_shard

SMALLISH = Preparation(size=32, smallest=32, shard_size=2)
prepare = partial(prepare_shards, processes=1)  # others take seconds to start


def tars(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def samples(folder: Path) -> dict[str, ShardSample]:
    found = [sample for path in sorted(folder.glob("*.tar")) for sample in read_shard(str(path))]
    return {sample.where.rpartition(" ")[2]: sample for sample in found}
