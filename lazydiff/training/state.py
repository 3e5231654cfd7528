"""The state of a training between two of its steps: a folder `state-STEP` of tensors and what belongs to them.

Tensors are safetensors and all else is JSON, so that nothing in a state is ever run. No random number generator is
kept: all randomness of a step is seeded by its number.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.files import whole_file
from ..data.stream import Examples
from .average import Average, copy_whole, whole
from .config import TrainingConfig
from .muon import MOMENT, MuonAdamW

FORMAT = 2  # 1 was of a number of processes
NAME = re.compile(r"state-(0|[1-9]\d{0,17})")
ABOUT = "state.json"
PARTS = ("model", "average", "step", "exp_avg", "exp_avg_sq")  # one file each: as one, they would need memory at once
KIND = "lazydiffusion training state"  # the mark that tells our folders from others
UNFINISHED, OBSOLETE = ".state-unfinished", ".state-obsolete"
CONTINUED = "checkpoint "  # begins the name of a model that a training began with, whose parts a state alone has not
# Settings that change nothing of the model that comes out, but for how sums are rounded.
FREE = ("accumulate", "checkpointing", "compile", "workers", "checkpoint_every", "picture_every")


class State(NamedTuple):
    """What has a state; each is read from and written into in place.

    Tensors may be spread over processes, all of which then have to save and load together. The files hold them whole,
    so that a training may go on in other parts than those it stopped in.

    scaler: of a training in half precision
    """

    model: nn.Module
    average: Average
    optimiser: torch.optim.Optimizer
    scaler: Any = None

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors themselves, by file and by name; before the first step there are no moments."""
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        parts |= {"model": own(self.model), "average": self.average.parameters}
        for name, parameter in self.model.named_parameters():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                parts["exp_avg" if moment == MOMENT else moment][name] = value  # beside AdamW's first
        return parts

    def save(self, folder: Path, step: int, record: Mapping[str, Any], writes: bool = True) -> None:
        """Write the state beside the older ones, and only then remove those.

        writes: whether this process is the one that does
        """
        if isinstance(self.optimiser, MuonAdamW):
            self.optimiser.gather()
        unfinished = folder / UNFINISHED
        if writes:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        for part, tensors in self.tensors().items():
            together = {name: whole(value, writes) for name, value in tensors.items()}
            if writes:
                with whole_file(unfinished / file_of(part)) as path:
                    save_file({name: value.cpu().contiguous() for name, value in together.items()}, path)
        if not writes:
            return
        older = states(folder)
        scaler = self.scaler.state_dict() if self.scaler is not None else None
        about = {"kind": KIND, "format": FORMAT, "step": step, "scaler": scaler, "training": record}
        (unfinished / ABOUT).write_text(json.dumps(about, indent=1), "utf-8")
        unfinished.rename(folder / f"state-{step}")
        for path in older.values():
            remove(path)

    def load(self, path: Path, record: dict[str, Any]) -> dict[str, Any]:
        """Take over a state, and return the record to go on with: weights to begin with need not be named again.

        Errors: ValueError for a damaged state, or one of another training.
        """
        about = read_about(path)
        assert about is not None
        there = about.get("training")
        if isinstance(there, dict) and record["initialise"] is None:
            before = there.get("initialise")
            record = record if str(before).startswith(CONTINUED) else record | {"initialise": before}
        if isinstance(there, dict):
            there.setdefault("optimiser", "adamw")  # the only one before there was a choice
        compare(path, there, record)
        try:
            with ExitStack() as opened:
                files = {part: opened.enter_context(safe_open(path / file_of(part), "pt")) for part in PARTS}
                found = {part: {name: shape_of(file, name) for name in file.keys()} for part, file in files.items()}
                if found != self.expected(found["exp_avg"]):
                    raise ValueError(
                        f"{path} is damaged, its tensors are not this training's: remove it to begin again"
                    )
                self.fill(files)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: remove it to begin again ({error})") from error
        if self.scaler is not None and isinstance(about.get("scaler"), dict):
            self.scaler.load_state_dict(about["scaler"])
        return record

    def expected(self, trained: Collection[str]) -> dict[str, dict[str, list[int]]]:
        """Shapes by file and name, for a state in which those parameters have been trained."""
        shapes = {part: {name: list(value.shape) for name, value in self.tensors()[part].items()} for part in PARTS}
        first = {name: shape for name, shape in shapes["model"].items() if name in trained}
        second = {name: first[name] for name in first.keys() - self.turned()}
        return shapes | {"step": dict.fromkeys(second, []), "exp_avg": first, "exp_avg_sq": second}

    def turned(self) -> set[str]:
        """Names of the parameters that Muon moves."""
        groups = [group["params"] for group in self.optimiser.param_groups if group.get("muon")]
        chosen = {id(parameter) for group in groups for parameter in group}
        return {name for name, parameter in self.model.named_parameters() if id(parameter) in chosen}

    @torch.no_grad()
    def fill(self, files: Mapping[str, Any]) -> None:
        """Take the tensors over from open files, one at a time."""
        for part in ("model", "average"):
            for name, value in self.tensors()[part].items():
                copy_whole(files[part].get_tensor(name), value)
        turned = self.turned()
        for name, parameter in self.model.named_parameters():
            if name not in files["exp_avg"].keys():
                continue
            files_of = {MOMENT: "exp_avg"} if name in turned else {part: part for part in ("exp_avg", "exp_avg_sq")}
            moments = {moment: torch.zeros_like(parameter) for moment in files_of}
            for moment, value in moments.items():
                copy_whole(files[files_of[moment]].get_tensor(name), value)
            if name not in turned:
                moments["step"] = files["step"].get_tensor(name)
            self.optimiser.state[parameter] = moments


def own(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers by name, each once."""
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return {**trained, **dict(module.named_buffers())}


def file_of(part: str) -> str:
    return f"{part}.safetensors"


def shape_of(file: Any, name: str) -> list[int]:
    shape: list[int] = file.get_slice(name).get_shape()
    return shape


def settings_record(config: TrainingConfig, examples: Examples, initial: str | None) -> dict[str, Any]:
    """What decides how a training goes on, as JSON has it; initial: fingerprint of the weights that it began with."""
    header = examples.header
    data = {"name": examples.name} | ({} if header is None else asdict(replace(header, samples=0)))
    settings = asdict(config)
    settings["model"]["network"] = config.model.network.named
    record: dict[str, Any] = json.loads(json.dumps({**settings, "data": data, "initialise": initial}))
    return record


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
