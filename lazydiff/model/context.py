"""The context: what hole tokens know about the visible ones, made once and read by any number of samplers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.tokens import HoleTokens
from .config import NetworkConfig


class LazyContext(NamedTuple):
    """Canvases with their holes, encoded by one model; immutable, and shared rather than copied.

    Usually one canvas (B = 1) for any number of samples; a batch of B canvases may have holes of different sizes.
    """

    model: str  # fingerprint of the model that made it
    hole: HoleTokens
    tokens: Tensor  # [B, n, width], the learned context
    canvas: Tensor  # [B, N, C·p·p], clean tokens of the whole canvas
    mask: Tensor  # [B, 1, H, W] bool, the holes in pixels
    network: NetworkConfig  # of that model
    vae: Any = None  # what the canvas was encoded with, for those who encode a sketch alike later
    fitted: Any = None  # how a canvas of another size was fitted, for those who put results back; see `fit.Fitted`
    black: bool = False  # whether there is nothing but black under its holes

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyContext:
        return self

    def to(self, device: torch.device) -> LazyContext:
        """The same on a device; itself if it is there."""
        if self.tokens.device == self.hole.index.device == self.canvas.device == self.mask.device == device:
            return self
        tokens, canvas, mask = (each.to(device) for each in (self.tokens, self.canvas, self.mask))
        return self._replace(hole=self.hole.to(device), tokens=tokens, canvas=canvas, mask=mask)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels, as the model sees it."""
        return self.hole.grid[0] * self.network.token, self.hole.grid[1] * self.network.token

    @property
    def cost(self) -> float:
        """Work of one decoder step as a share of a step over the whole canvas, 0…1."""
        hole, canvas = (self.network.macs(n, self.network.text_length) for n in (self.hole.count, self.hole.total))
        return hole / canvas

    @property
    def megabytes(self) -> float:
        """Size of the learned context in half precision."""
        return self.tokens.numel() * 2 / 2**20
