"""Boots a real ComfyUI, once per run.

It boots inside the test process: ten seconds once, and tests call the host's functions directly. The price is order:
the checkout goes to the front of `sys.path`, so that the host's `nodes` is found and not this repository's folder of
that name, and the host is told to use the CPU before anything of it asks for a device.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest


def stand_in_for_torchvision() -> None:
    """Let the host import where no torchvision is installed; it is called by none of the nodes tested here."""
    for name in ("torchvision", "torchvision.transforms"):
        module = sys.modules[name] = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """ComfyUI's own `nodes` module, on the CPU; skips where there is no checkout or it cannot be imported."""
    checkout = Path(os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI").expanduser().resolve()
    if not (checkout / "nodes.py").is_file():
        pytest.skip(f"no ComfyUI checkout at {checkout}: set COMFYUI_PATH to one")
    if importlib.util.find_spec("torchvision") is None:
        stand_in_for_torchvision()
    sys.path.insert(0, str(checkout))
    try:
        from comfy.cli_args import args

        args.cpu = True
        import nodes
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a torchvision built for another torch
        pytest.skip(f"the ComfyUI at {checkout} cannot be imported (pip install -e '.[host]'): {error!r}")
    assert Path(nodes.__file__).parent == checkout
    return nodes
