"""What a training run is: read from a small TOML file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..core.checks import Range, check_choice, check_flags, check_ranges, shortened
from ..core.files import check_file
from ..model.config import PRESETS, ModelConfig, Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("no", "bf16", "fp16")
MANY = 10**9
RANGES = {
    "seed": Range(0, 2**32 - 1, whole=True),
    "steps": Range(1, MANY, whole=True),
    "scenes": Range(1, 2**16, whole=True),
    "noise_levels": Range(1, 1000, whole=True),
    "learning_rate": Range(0, 10, above=True),
    "weight_decay": Range(0, 10),
    "clip": Range(0, 1e6, above=True),
    "warm_up": Range(0, MANY, whole=True),
    "decay_from": Range(0, 1),
    "ema": Range(0, 1),
    "drop_text": Range(0, 1),
    "noise_mean": Range(-20, 20),
    "noise_deviation": Range(0, 20),
    "weigh_variance_from": Range(0, MANY, whole=True),
    "workers": Range(0, 256, whole=True),
    "checkpoint_every": Range(1, MANY, whole=True),
    "picture_every": Range(1, MANY, whole=True),
}
MODEL = ("preset", "prediction", "name")  # what the table says of a model
BETA = Range(0, 0.999999)


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

    def check(self) -> None:
        """Errors: ValueError for settings that no training can have."""
        self.model.check()
        check_ranges(self, RANGES)
        check_flags(self, "crop")
        check_choice("precision", self.precision, PRECISIONS)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2 or not all(BETA.has(beta) for beta in self.betas):
            raise ValueError(f"betas is {shortened(self.betas)}: choose two numbers from 0 to below 1")

    @classmethod
    def read(cls, path: Path, **changes: Any) -> TrainingConfig:
        """Read a TOML file with the tables `model`, `sampling` and `training`; `changes` override the last.

        Errors: ValueError that names the file, for settings that are missing, unknown or impossible.
        """
        check_file(path)
        try:
            config = cls._of(tomllib.loads(path.read_text("utf-8")), changes)
            config.check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return config

    @classmethod
    def _of(cls, tables: dict[str, Any], changes: dict[str, Any]) -> TrainingConfig:
        kinds: dict[str, Any] = {"model": None, "sampling": Sampling, "training": cls}
        for name, table in tables.items():
            if name not in kinds or not isinstance(table, dict):
                raise ValueError(f"there is no table called {shortened(name)}: choose {', '.join(kinds)}")
            known = {field.name for field in fields(kinds[name])} - {"model"} if kinds[name] else set(MODEL)
            if unknown := sorted(set(table) - known):
                raise ValueError(f"[{name}] has no setting called {', '.join(unknown)[:80]}")
        model = tables.get("model", {})
        if missing := [name for name in MODEL if name not in model]:
            raise ValueError(f"[model] lacks {', '.join(missing)}")
        if not isinstance(model["preset"], str) or model["preset"] not in PRESETS:
            raise ValueError(f"[model] preset must be one of {', '.join(PRESETS)}")
        config = ModelConfig(
            network=PRESETS[model["preset"]], prediction=model["prediction"], name=model["name"],
            sampling=Sampling(**tables.get("sampling", {})),
        )  # fmt: skip
        settings = {**tables.get("training", {}), **{k: v for k, v in changes.items() if v is not None}}
        if isinstance(settings.get("betas"), list):
            settings["betas"] = tuple(settings["betas"])
        return cls(model=config, **settings)
