"""The state of a training between two of its steps: a folder `state-STEP` of tensors and what belongs to them.

Tensors are safetensors and all else is JSON, so that nothing in a state is ever run. No random number generator is
kept: all randomness of a step is seeded by its number.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.files import whole_file
from .config import TrainingConfig

FORMAT = 1
NAME = re.compile(r"state-(0|[1-9]\d{0,17})")
ABOUT, TENSORS = "state.json", "state.safetensors"
KIND = "lazydiffusion training state"  # the mark that tells our folders from others
UNFINISHED, OBSOLETE = ".state-unfinished", ".state-obsolete"
FREE = ("checkpoint_every", "picture_every")  # settings that change nothing of the model that comes out


class State(NamedTuple):
    """What has a state; each is read from and written into in place.

    scaler: of a training in half precision
    """

    model: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: Any = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors themselves, by their names in the file, without the optimiser's."""
        return {f"{part}.{name}": value for part in ("model", "average") for name, value in own(getattr(self, part))}

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's tensors by their names in the file; before its first step there are none."""
        state = self.optimiser.state_dict()["state"].items()
        return {f"optimiser.{number}.{name}": value for number, values in state for name, value in values.items()}

    def save(self, folder: Path, step: int, description: Mapping[str, Any]) -> None:
        """Write the state beside the older ones, and only then remove those."""
        older = states(folder)
        unfinished = folder / UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        everything = self.tensors() | self.moments()
        with whole_file(unfinished / TENSORS) as path:
            save_file({name: value.detach().cpu().contiguous() for name, value in everything.items()}, path)
        scaler = self.scaler.state_dict() if self.scaler is not None else None
        about = {"kind": KIND, "format": FORMAT, "step": step, "scaler": scaler, "training": description}
        (unfinished / ABOUT).write_text(json.dumps(about, indent=1), "utf-8")
        unfinished.rename(folder / f"state-{step}")
        for path in older.values():
            remove(path)

    def load(self, path: Path, description: Mapping[str, Any]) -> None:
        """Errors: ValueError for a damaged state, or one of another training."""
        about = read_about(path)
        assert about is not None
        compare(path, about.get("training"), description)
        try:
            tensors = load_file(path / TENSORS)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: remove it to begin again ({error})") from error
        own_tensors, moments = self.tensors(), self.expected_moments(tensors)
        expected = {name: value.shape for name, value in own_tensors.items()} | moments
        if expected != {name: value.shape for name, value in tensors.items()}:
            raise ValueError(f"{path} is damaged, its tensors are not this training's: remove it to begin again")
        with torch.no_grad():
            for name, value in own_tensors.items():
                value.copy_(tensors[name])
        optimiser = self.optimiser.state_dict()
        for full in moments:
            _, number, name = full.split(".")
            optimiser["state"].setdefault(int(number), {})[name] = tensors[full]
        self.optimiser.load_state_dict(optimiser)
        if self.scaler is not None and isinstance(about.get("scaler"), dict):
            self.scaler.load_state_dict(about["scaler"])

    def expected_moments(self, tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Shapes that AdamW's tensors must have, of the parameters that have been trained."""
        shapes = {}
        for number, parameter in enumerate(p for group in self.optimiser.param_groups for p in group["params"]):
            if f"optimiser.{number}.step" in tensors:
                shapes[f"optimiser.{number}.step"] = torch.Size()
                for name in ("exp_avg", "exp_avg_sq"):
                    shapes[f"optimiser.{number}.{name}"] = parameter.shape
        return shapes


def own(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, each once."""
    return [*module.named_parameters(), *module.named_buffers()]


def settings_record(config: TrainingConfig, processes: int) -> dict[str, Any]:
    """What decides how a training goes on, as JSON has it."""
    return json.loads(json.dumps({**asdict(config), "processes": processes}))


def states(folder: Path) -> dict[int, Path]:
    """The whole states in a folder by their steps: those of our name with our mark, and no others."""
    found = {}
    for path in folder.iterdir():
        if (name := NAME.fullmatch(path.name)) and (about := read_about(path)) and about.get("step") == int(name[1]):
            found[int(name[1])] = path
    return dict(sorted(found.items()))


def read_about(path: Path) -> dict[str, Any] | None:
    """What a folder says about itself, None of one that is not ours."""
    try:
        about = json.loads((path / ABOUT).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) and about.get("kind") == KIND and about.get("format") == FORMAT else None


def newest_state(folder: Path) -> tuple[int, Path] | None:
    """Step and path of the last state, once what a killed training has left of others is removed.

    Errors: ValueError for a folder of a state's name that is none: one of that name could not be written.
    """
    for name in (UNFINISHED, OBSOLETE):
        shutil.rmtree(folder / name, ignore_errors=True)
    found = states(folder)
    for path in folder.iterdir():
        if NAME.fullmatch(path.name) and path not in found.values():
            raise ValueError(f"{path} has the name of a training's state and is none of this version: move it away")
    if not found:
        return None
    *older, newest = found
    for step in older:
        remove(found[step])  # killed between writing the newest and removing it
    return newest, found[newest]


def remove(path: Path) -> None:
    """Under another name, because a state that is half removed must not be taken for one."""
    obsolete = path.with_name(OBSOLETE)
    shutil.rmtree(obsolete, ignore_errors=True)
    path.rename(obsolete)
    shutil.rmtree(obsolete, ignore_errors=True)


def compare(path: Path, there: Any, here: Mapping[str, Any]) -> None:
    """Errors: ValueError that names the settings in which a state differs from the training that would go on."""
    if not isinstance(there, dict):
        raise ValueError(f"{path} is damaged: remove it to begin again")
    changes = [f"{name} {a} there and {b} here" for name, a, b in differences(there, here)]
    if changes:
        raise ValueError(
            f"{path} is of a training with other settings ({'; '.join(changes)[:300]}): "
            "give it these settings, or another --output"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for name in sorted({*there, *here}):
        a, b = there.get(name, "missing"), here.get(name, "missing")
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{within}{name}.")
        elif a != b and name not in FREE:
            found.append((within + name, a, b))
    return found
