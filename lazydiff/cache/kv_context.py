"""The KV context: canvases with their holes for a stock transformer, and what samplings on them keep."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..core.tokens import HoleTokens
from .kv_cache import KVCache


class KVContext(NamedTuple):
    """Canvases with their holes for a stock transformer; what the samplings on them keep is collected in `anchors`.

    A batch of canvases may have holes of different sizes; what is computed is the union.
    """

    model: Any  # weak reference to the network that it is for
    name: str  # of its architecture; empty: one that computes everything
    hole: HoleTokens
    canvas: Tensor  # [B, C, h, w] or [B, C, 1, h, w], latent of the whole canvas
    token: int  # px per side of a token
    anchors: KVCache
    held: list[Tensor]  # what the anchors keep in main memory, where a host that counts memory looks for it
    space: Any = None  # what the canvas was encoded with, for those who encode a sketch alike later
    mask: Tensor | None = None  # [B, 1, H, W] bool, the holes' pixels, for those who blend later

    def __deepcopy__(self, memo: dict[int, Any]) -> KVContext:
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels."""
        return self.hole.grid[0] * self.token, self.hole.grid[1] * self.token
