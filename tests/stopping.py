"""A training that is stopped in the middle, as by a fault or by whoever pulls the plug."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazydiff.training.config import TrainingConfig
from lazydiff.training.engine import Engine, Launch
from lazydiff.training.train import train


class Stopped(Exception):
    pass


def stopped(config: TrainingConfig, folder: Path, steps: int, launch: Launch | None = None) -> None:
    """Train for that many steps and no further."""
    step, calls = Engine.step, []

    def stopping(self: Engine, *arguments: object) -> object:
        calls.append(1)
        if len(calls) > steps:
            raise Stopped
        return step(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Engine, "step", stopping)
        train(config, folder, launch=launch)
