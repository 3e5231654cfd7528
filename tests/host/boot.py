"""Starts a ComfyUI checkout where torchvision and torchaudio may be missing: python boot.py CHECKOUT [its arguments].

Their wheels are built for one build of torch each. Nothing tested here calls them, but the host does not start without.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)


class StandIns(MetaPathFinder, Loader):
    """Finds some packages, and all of their parts, as empty modules."""

    def __init__(self, packages: Sequence[str]):
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in() -> None:
    """Let the host import torchvision, and what is built on it, where they are not installed."""
    missing = [name for name in ("torchvision", "torchaudio", "spandrel") if importlib.util.find_spec(name) is None]
    if "torchvision" in missing:
        # Looks for torchvision once, on import, and must not find the stand-in.
        import transformers.models.t5.modeling_t5  # noqa: F401
    if missing:
        sys.meta_path.append(StandIns(missing))


if __name__ == "__main__":
    checkout = sys.argv[1]
    stand_in()
    sys.argv = [os.path.join(checkout, "main.py"), *sys.argv[2:]]
    sys.path[0] = checkout
    os.chdir(checkout)
    runpy.run_path("main.py", run_name="__main__")
