"""The KV context: canvases with their holes for a stock transformer that was not trained to be lazy."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from ..core.tokens import HoleTokens
from .kv_cache import KVCache, KVSettings


class ContextKey:
    """What a context's cache is known by: it dies with the last copy of the context, and the cache with it."""


class KVContext(NamedTuple):
    """Canvases with their holes; immutable, and shared rather than copied. Keys and values are kept beside it.

    A batch of canvases may have holes of different sizes; what is computed is the union.
    """

    key: ContextKey
    model: Any  # weak reference to the network that it is for
    name: str  # of its architecture; empty: one that computes everything
    hole: HoleTokens
    canvas: Tensor  # [B, C, h, w] or [B, C, 1, h, w], latent of the whole canvas
    mask: Tensor  # [B, 1, H, W] bool, the holes in pixels
    token: int  # px per side of a token
    settings: KVSettings
    vae: Any = None  # what the canvas was encoded with, for those who encode a sketch alike later
    fitted: Any = None  # how a canvas of another size was fitted, for those who put results back; see `fit.Fitted`
    black: bool = False  # whether there is nothing but black under its holes

    def __deepcopy__(self, memo: dict[int, Any]) -> KVContext:
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels, as the model sees it."""
        return self.hole.grid[0] * self.token, self.hole.grid[1] * self.token


CACHES: WeakKeyDictionary[ContextKey, KVCache] = WeakKeyDictionary()


def cache_of(context: KVContext) -> KVCache:
    """What samplings on a context leave for those after them, if its settings say so; else a cache for one sampling."""
    if not context.settings.reuse:
        return KVCache(context.settings)
    return CACHES.setdefault(context.key, KVCache(context.settings))
