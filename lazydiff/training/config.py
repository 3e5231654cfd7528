"""What a training run is: read from a small TOML file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..model.config import PRESETS, ModelConfig, Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser, data and bookkeeping of one run; times are in optimiser steps."""

    model: ModelConfig
    seed: int = 0
    steps: int = 10000
    scenes: int = 16  # per process and step
    noise_levels: int = 4  # per scene: the context is encoded once for all of them
    learning_rate: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.03
    clip: float = 1.0
    warm_up: int = 200
    decay_from: float = 0.4  # share of the run after which the rate falls linearly to zero
    ema: float = 0.998
    drop_text: float = 0.1
    crop: bool = False  # train on the square around each hole (the paper's RegenerateCrop)
    noise_mean: float = -1.2  # of the signal share's logit (flow path)
    noise_deviation: float = 1.2
    weigh_variance_from: int = 0  # from this step on, channels count by their variance, before it alike (flow path)
    precision: str = "bf16"
    workers: int = 1
    checkpoint_every: int = 500
    picture_every: int = 1000

    @classmethod
    def read(cls, path: Path, **changes: Any) -> TrainingConfig:
        """Read a TOML file with the tables `model`, `sampling` and `training`; `changes` override the last."""
        tables = tomllib.loads(path.read_text("utf-8"))
        for name, kind in (("training", cls), ("sampling", Sampling)):
            unknown = set(tables.get(name, {})) - {field.name for field in fields(kind)}
            if unknown:
                raise ValueError(f"{path}: [{name}] has no setting called {', '.join(sorted(unknown))}")
        model = tables["model"]
        if model.get("preset") not in PRESETS:
            raise ValueError(f"{path}: [model] preset must be one of {', '.join(PRESETS)}")
        config = ModelConfig(
            network=PRESETS[model["preset"]], prediction=model["prediction"], name=model["name"],
            sampling=Sampling(**tables.get("sampling", {})),
        )  # fmt: skip
        settings = {**tables.get("training", {}), **{k: v for k, v in changes.items() if v is not None}}
        if "betas" in settings:
            settings["betas"] = tuple(settings["betas"])
        return cls(model=config, **settings)
