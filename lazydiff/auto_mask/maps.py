"""Heat maps [..., H, W] in 0…1: stretched, resized, blurred, averaged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROUND_OFF = 1e-5  # contrast of a map, as a share of its values, that is none


def normalise(maps: Tensor) -> Tensor:
    """Each map [..., H, W] stretched to 0…1; a map without any contrast is 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(high - low > ROUND_OFF * high.abs(), (maps - low) / (high - low), 0)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [n, h, w] in 0…1 -> [n, *size], bicubic as Pillow's, which does not leave 0…1 either."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], size, mode="bicubic", antialias=True)[:, 0].clamp(0, 1)


def by_maximum(maps: Tensor) -> Tensor:
    return maps / maps.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def blur(heat: Tensor) -> Tensor:
    """Twice blurred by OpenCV's 5×5 Gaussian (σ about 1, its borders mirrored) and stretched to 0…1 again (step 5)."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=heat.device) / 16
    for _ in range(2):
        padded = F.pad(heat[None, None], (2, 2, 2, 2), mode="reflect")
        heat = F.conv2d(padded, line.outer(line)[None, None])[0, 0]
    return normalise(heat)


def channels(x: Tensor) -> Tensor:
    """Sum of the channels' magnitudes, [B, C, ..., h, w] -> [B, h, w]."""
    return x.abs().flatten(1, -3).sum(1)


class Mean:
    """The mean of all rows added so far, in their own precision."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """[n, ...], all but the first side equal to those before.

        Errors: ValueError for rows of another shape.
        """
        if self.sum is not None and self.sum.shape != rows.shape[1:]:
            raise ValueError(f"maps of {list(rows.shape[1:])} do not go with those of {list(self.sum.shape)} before")
        self.sum = rows.sum(0) if self.sum is None else self.sum + rows.sum(0).to(self.sum.device)
        self.count += len(rows)

    @property
    def value(self) -> Tensor | None:
        return None if self.sum is None else self.sum / self.count
