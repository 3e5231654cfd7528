"""Noise that belongs to places of the canvas, so that a seed means the same whatever is masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.tokens import HoleTokens
from ..core.transfer import to_device


class CanvasNoise:
    """Draws noise for the whole canvas and hands out the hole's share of it.

    One seed gives the same noise at a place for every mask, in every batch and on every device.

    seeds: one per row of `hole`; each has a generator of its own
    channels: of a token
    Raises ValueError when the seeds are not as many as the rows.
    """

    def __init__(self, seeds: Sequence[int], hole: HoleTokens, channels: int):
        if len(seeds) != len(hole.index):
            raise ValueError(f"{len(seeds)} seeds for {len(hole.index)} masks: give one seed per mask")
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape = (hole.total, channels)
        self._device = hole.index.device
        self._hole = hole.to("cpu")  # here, once: a sampler's loop must not wait for the device

    def next(self) -> Tensor:
        """Standard normal noise [B, n, C] of the next draw: the first is a sampler's start, then one for each step."""
        canvas = [torch.randn(self._shape, generator=generator, device="cpu") for generator in self.generators]
        tokens = self._hole.gather(torch.stack(canvas))
        return to_device(tokens, self._device)
