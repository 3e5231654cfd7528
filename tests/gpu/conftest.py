"""Every test here has a pretended GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.pretended_gpu import PretendedGPU, pretended_gpu
from lazydiff.evaluation.laboratory import SMALL
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.lazydiffusion import LazyDiffusion


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    if torch.version.cuda or torch.version.hip:
        pytest.skip("this torch knows real GPUs: the pretended one takes their place in builds for CPUs alone")
    with pretended_gpu() as gpu, torch.no_grad():
        yield gpu


@pytest.fixture(scope="session")
def small() -> LazyDiffusion:
    return load_checkpoint(SMALL)
