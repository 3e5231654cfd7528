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
OPTIMISERS = ("adamw", "muon")  # the second of the matrices of blocks, see `muon`
MANY = 10**9
RANGES = {
    "seed": Range(0, 2**32 - 1, whole=True),
    "steps": Range(1, MANY, whole=True),
    "batch": Range(1, 2**20, whole=True),
    "readers": Range(1, 2**16, whole=True),
    "accumulate": Range(1, 2**16, whole=True),
    "noise_levels": Range(1, 1000, whole=True),
    "learning_rate": Range(0, 10, above=True),
    "eps": Range(0, 1, above=True),
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
PACKAGE = Path(__file__).parents[1]
CONFIGS = {  # of models of full size, and of the laboratory's
    path.stem: path
    for folder in ("training/configs", "evaluation/weights")
    for path in sorted((PACKAGE / folder).glob("*.toml"))
}
MODEL = ("preset", "prediction", "name")  # what the table says of a model
BETA = Range(0, 0.999999)


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser, data and bookkeeping of one run; times are in optimiser steps.

    The order of the examples is divided into `readers` parts, each of which gives as many to every step. So a step has
    the same examples on any number of processes, and `accumulate` changes no more than how they are added up.
    """

    model: ModelConfig
    size: int | None = None  # px per side of its pictures; the canvas's if not given, less for a cheaper stage
    seed: int = 0
    steps: int = 10000
    batch: int = 32  # examples per step, of all processes
    readers: int = 1
    accumulate: int = 1  # parts in which a process computes its share of a step
    noise_levels: int = 4  # per example: the context is encoded once for all of them
    optimiser: str = "adamw"
    learning_rate: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.03
    clip: float = 1.0
    warm_up: int = 200
    decay_from: float = 0.4  # share of the run after which the rate falls linearly to zero; 1: it never does
    ema: float = 0.998
    drop_text: float = 0.1
    crop: bool = False  # train on the square around each hole (the paper's RegenerateCrop)
    noise_mean: float = -1.2  # of the signal share's logit (flow path)
    noise_deviation: float = 1.2
    weigh_variance_from: int = 0  # from this step on, channels count by their variance, before it alike (flow path)
    precision: str = "bf16"
    checkpointing: bool = False  # blocks compute their activations a second time instead of keeping them
    compile: bool = False  # blocks are compiled in the first minutes, and computed sooner from then on
    workers: int = 1
    checkpoint_every: int = 500
    picture_every: int = 1000

    def check(self) -> None:
        """Errors: ValueError for settings that no training can have."""
        self.model.check()
        check_ranges(self, RANGES)
        token, canvas = self.model.network.token, self.model.network.canvas
        if self.size is not None and not Range(token, canvas, whole=True).has(self.size) or self.side % token:
            raise ValueError(f"size is {shortened(self.size)}: choose {token} to {canvas}, a multiple of {token}")
        check_flags(self, "crop", "checkpointing", "compile")
        if self.compile and self.checkpointing:
            raise ValueError("compile and checkpointing are both true: choose one")
        if self.batch % self.readers:
            raise ValueError(f"batch is {self.batch}: it must be a multiple of readers, {self.readers}")
        check_choice("optimiser", self.optimiser, OPTIMISERS)
        check_choice("precision", self.precision, PRECISIONS)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2 or not all(BETA.has(beta) for beta in self.betas):
            raise ValueError(f"betas is {shortened(self.betas)}: choose two numbers from 0 to below 1")

    @property
    def side(self) -> int:
        """Pixels per side of the pictures."""
        return self.model.network.canvas if self.size is None else self.size

    def micro_batch(self, processes: int) -> int:
        """Examples that a process computes at a time.

        Errors: ValueError for a number of processes among which the readers or a step's examples cannot be divided.
        """
        if self.readers % processes:
            raise ValueError(
                f"{processes} processes cannot share readers = {self.readers}: "
                "choose a number of processes that divides it, or other readers"
            )
        micro_batch, rest = divmod(self.batch, processes * self.accumulate)
        if rest:
            raise ValueError(
                f"batch is {self.batch}: it must be a multiple of {processes * self.accumulate}, "
                f"the processes ({processes}) times accumulate ({self.accumulate})"
            )
        return micro_batch

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


def find_config(name: str) -> Path:
    """The file of a configuration: a path, or the name of one that the package brings.

    Errors: ValueError for what is neither.
    """
    if name in CONFIGS and not Path(name).exists():
        return CONFIGS[name]
    if not Path(name).exists():
        raise ValueError(f"{shortened(name, 200)}: there is no such file, and the package brings {', '.join(CONFIGS)}")
    return Path(name)
