"""The pack inside this process, and something to edit."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lazydiff.core.pictures import from_array
from lazydiff.scenes import random_sample


def scene(number: int) -> tuple[Tensor, Tensor, str]:
    """Image [1, 3, 96, 96] in 0…1, mask [1, 1, 96, 96] and caption of a sample of the world."""
    sample = random_sample(np.random.default_rng([7, number]), "object")
    return from_array(sample.image), torch.from_numpy(sample.mask)[None, None].float(), sample.caption


class Pack:
    """The pack as the host has loaded it."""

    def __init__(self, host: ModuleType):
        self.host = host
        model = next(name for name in sys.modules if name.endswith("nodes.host.model"))
        self.module = model.removesuffix("nodes.host.model")

    def part(self, name: str) -> Any:
        """A module of the pack, as the pack itself imports it."""
        return importlib.import_module(self.module + name)

    @torch.inference_mode()
    def call_whole(self, node: str, **inputs: Any) -> Any:
        """Run a node of ours as the host would; with what it tells the page."""
        return self.host.NODE_CLASS_MAPPINGS[node].execute(**inputs)

    @torch.inference_mode()
    def call(self, node: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run a node, ours or the host's, as the host would."""
        kind = self.host.NODE_CLASS_MAPPINGS[node]
        if hasattr(kind, "GET_SCHEMA"):
            return kind.execute(*args, **kwargs).result
        return getattr(kind(), kind.FUNCTION)(*args, **kwargs)


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every sampling in here ends after a step, where the host looks whether it is interrupted."""
    import comfy.model_management as mm
    import latent_preview

    def stop(*of_step: Any) -> None:
        raise mm.InterruptProcessingException

    with monkeypatch.context() as patched:
        patched.setattr(latent_preview, "prepare_callback", lambda *unused: stop)
        yield
