"""What the canvas editor has at hand from stroke to stroke. All of it may be lost, and is then made again."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

KEPT_CANVASES, KEPT_CONTEXTS, KEPT_PROMPTS, KEPT_OWNERS = 8, 2, 8, 10_000


class Recent:
    """The values that were used last, each for one key and for the objects of the host's that it was made with."""

    def __init__(self, most: int):
        self.most = most
        self.values: OrderedDict[Hashable, tuple[tuple[weakref.ref[Any], ...], Any]] = OrderedDict()

    def get(self, key: Hashable, makers: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The value that is remembered of a key, or a new one if there is none, or was made with other objects."""
        known = self.values.get(key)
        if known is not None and all(ref() is maker for ref, maker in zip(known[0], makers, strict=True)):
            self.values.move_to_end(key)
            return known[1]
        value = make()
        self.put(key, makers, value)
        return value

    def put(self, key: Hashable, makers: tuple[Any, ...], value: Any) -> None:
        self.values[key] = tuple(weakref.ref(maker) for maker in makers), value
        self.values.move_to_end(key)
        while len(self.values) > self.most:
            self.values.popitem(last=False)


class Owners:
    """Which pages have asked for which variations."""

    def __init__(self, most: int):
        self.most = most
        self.tabs: OrderedDict[str, set[str]] = OrderedDict()

    def add(self, id: str, tab: str) -> None:
        self.tabs.setdefault(id, set()).add(tab)
        self.tabs.move_to_end(id)
        while len(self.tabs) > self.most:
            self.tabs.popitem(last=False)

    def check(self, id: str, tab: str) -> None:
        """Errors: PermissionError for what another page has asked for."""
        if tab not in self.tabs.get(id, {tab}):
            raise PermissionError("this variation belongs to a canvas in another tab: keep it there")


CANVASES_AT_HAND, CONTEXTS_AT_HAND, PROMPTS_AT_HAND = map(Recent, (KEPT_CANVASES, KEPT_CONTEXTS, KEPT_PROMPTS))
OWNERS = Owners(KEPT_OWNERS)
