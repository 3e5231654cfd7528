"""What the user sees of a node while it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import comfy.utils
import torch
from comfy_execution.utils import get_executing_context


def show(text: str) -> None:
    """Show a text on the node that runs, where there is a user interface to show it."""
    running = get_executing_context()
    if "server" in sys.modules and running is not None:
        sys.modules["server"].PromptServer.instance.send_progress_text(text, running.node_id)


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
