"""The context: what hole tokens know about the visible ones, made once and read by any number of samplers."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .anchors import Anchors
from .networks.config import NetworkConfig
from .tokens import HoleTokens


class LazyContext(NamedTuple):
    """Canvases with their holes, encoded by one model; immutable, and shared rather than copied.

    Usually one canvas (B = 1) for any number of samples; a batch of B canvases may have holes of different sizes.
    """

    model: str  # fingerprint of the model that made it
    hole: HoleTokens
    tokens: Tensor  # [B, n, width], the learned context; of models that compute every token [B, N, width]
    canvas: Tensor  # [B, N, C·p·p], clean tokens of the whole canvas
    network: NetworkConfig  # of that model
    space: Any = None  # what the canvas was encoded with, for those who encode a sketch alike later
    mask: Tensor | None = None  # [B, 1, H, W] bool, the holes' pixels, for those who blend later

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyContext:
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels."""
        return self.hole.grid[0] * self.network.token, self.hole.grid[1] * self.network.token

    @property
    def cost(self) -> float:
        """Work of one decoder step as a share of a step over the whole canvas, 0…1; it is 1 if all is computed."""
        if self.network.dense:
            return 1.0
        hole, canvas = (self.network.macs(n, self.network.text_length) for n in (self.hole.count, self.hole.total))
        return hole / canvas

    @property
    def megabytes(self) -> float:
        """Size of the learned context in half precision."""
        return self.tokens.numel() * 2 / 2**20


class KVContext(NamedTuple):
    """Canvases with their holes for a stock transformer; what the samplings on them keep is collected in `anchors`.

    A batch of canvases may have holes of different sizes; what is computed is the union.
    """

    model: Any  # weak reference to the network that it is for
    name: str  # of its architecture; empty: one that computes everything
    hole: HoleTokens
    canvas: Tensor  # [B, C, h, w] or [B, C, 1, h, w], latent of the whole canvas
    token: int  # px per side of a token
    anchors: Anchors
    held: list[Tensor]  # what the anchors keep in main memory, where a host that counts memory looks for it
    space: Any = None  # what the canvas was encoded with, for those who encode a sketch alike later
    mask: Tensor | None = None  # [B, 1, H, W] bool, the holes' pixels, for those who blend later

    def __deepcopy__(self, memo: dict[int, Any]) -> KVContext:
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels."""
        return self.hole.grid[0] * self.token, self.hole.grid[1] * self.token
