"""The KV context: canvases with their holes for a stock transformer that was not trained to be lazy."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from ..core.tokens import HoleTokens
from .kv_cache import KVCache, KVSettings
from .recording import RecordingCache, empty_cache


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

    def check(self, model: Any, latent: Tensor) -> None:
        """Errors: ValueError for another model, or for a latent of another size or number of canvases."""
        if self.model() is not model:
            raise ValueError("this context was made for another model: encode the canvas again with this one")
        cell = self.size[0] // self.canvas.shape[-2]
        if latent.shape[-2:] != self.canvas.shape[-2:]:
            (height, width), (y, x) = latent.shape[-2:], self.size
            raise ValueError(
                f"this context was made for {x}×{y}, the canvas is {width * cell}×{height * cell}: encode it again"
            )
        if latent.ndim == 5 and latent.shape[2] > 1:
            raise ValueError(f"the latent is of {latent.shape[2]} frames: a context is of single pictures")
        if len(latent) % len(self.canvas):
            raise ValueError(f"this context is of {len(self.canvas)} canvases, the batch is of {len(latent)} latents")


CACHES: WeakKeyDictionary[ContextKey, KVCache | RecordingCache] = WeakKeyDictionary()


def cache_of(context: KVContext) -> KVCache | RecordingCache:
    """What samplings on a context leave for those after them. Recordings always serve them, for they change no picture;
    anchors do if the settings say so, and else they are of one sampling."""
    cache = empty_cache(context.settings)
    return CACHES.setdefault(context.key, cache) if context.settings.recorded or context.settings.reuse else cache
