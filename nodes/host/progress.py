"""What the user sees of a node while it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import comfy.utils
import torch
from comfy_execution.utils import get_executing_context

TOLD = ContextVar("TOLD", default=True)


def show(text: str) -> None:
    """Show a text on the node that runs, where there is a user interface to show it."""
    running = get_executing_context()
    if "server" in sys.modules and running is not None and TOLD.get():
        sys.modules["server"].PromptServer.instance.send_progress_text(text, running.node_id)


@contextmanager
def untold() -> Iterator[None]:
    """In here no text is shown: the node does by itself what these texts advise, and has a place for its own."""
    before = TOLD.set(False)
    try:
        yield
    finally:
        TOLD.reset(before)


class counted:
    """Moves a bar on by one as each of some modules runs for the first time; here the host can also interrupt."""

    def __init__(self, modules: Iterable[torch.nn.Module], bar: comfy.utils.ProgressBar):
        self.modules, self.bar = list(modules), bar
        self.seen: set[torch.nn.Module] = set()

    def __enter__(self) -> None:
        self.hooks = [module.register_forward_hook(self.ran) for module in self.modules]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def ran(self, module: torch.nn.Module, *_: object) -> None:
        if module not in self.seen:
            self.seen.add(module)
            self.bar.update(1)
