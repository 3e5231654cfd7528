"""The templates that ship, as the front end opens them and as the server runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .running_server import PACK

FOLDER = PACK / "workflows"
GRAPHS = Path(__file__).parent / "graphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
Prompt = dict[str, dict[str, Any]]  # nodes by number


def template(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return loaded


def first_edit() -> Prompt:
    """One hole and one prompt, node by node, for the API: what most tests of single nodes begin with."""
    loaded: Prompt = json.loads((GRAPHS / "first-edit.json").read_text("utf-8"))
    return loaded


def first_edit_opened() -> dict[str, Any]:
    """The same as the front end opens it."""
    loaded: dict[str, Any] = json.loads((GRAPHS / "first-edit-ui.json").read_text("utf-8"))
    return loaded


def workflow(name: str) -> Prompt:
    """Its twin for the API."""
    loaded: Prompt = json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))
    return loaded


def quickly(prompt: Prompt) -> Prompt:
    """The same with few steps and one of everything: of the whole canvas even a step takes a CPU a second."""
    few = {"steps": 8, "variations": 1, "seeds": 1}
    for node in prompt.values():
        inputs = node["inputs"]
        inputs.update({name: min(most, inputs[name]) for name, most in few.items() if name in inputs})
    return prompt


LOADERS = "UNETLoader", "CheckpointLoaderSimple"  # of files that do not come with the pack
OF_ONES_OWN = [name for name in NAMES if any(loader in json.dumps(workflow(name)) for loader in LOADERS)]
