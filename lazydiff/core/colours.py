"""Colours of one picture in the tones of another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 16  # px around a hole that may have been generated with it, by whole tokens
WIDTH = 32  # px beyond those, of the ring that is compared
FLAT = (2 / 255) ** 2  # variance of a channel that is noise alone, which must not be amplified
GAIN = 2.0  # at most, and its inverse at least


def match_colours(source: Tensor, destination: Tensor, mask: Tensor) -> Tensor:
    """The source in the tones of the destination: per channel, mean and deviation in a ring around the hole, which both
    pictures show, become the destination's.

    source, destination: [B, C, H, W], any range; mask: [B, 1, H, W], above 0.5 is hole
    The ring leaves out what is nearest to the hole. Where nothing is left of it the source stays as it is.
    Source: Reinhard et al. 2001, Color Transfer between Images, in the picture's own channels.
    """
    hole = (mask > 0.5).to(source)
    ring = _widened(hole, NEAR + WIDTH) - _widened(hole, NEAR)
    count = ring.sum((2, 3), keepdim=True)

    def moments(image: Tensor) -> tuple[Tensor, Tensor]:
        mean = (image * ring).sum((2, 3), keepdim=True) / count.clamp(min=1)
        return mean, ((image - mean).square() * ring).sum((2, 3), keepdim=True) / count.clamp(min=1)

    (mean, variance), (wanted, spread) = moments(source), moments(destination)
    gain = ((spread + FLAT) / (variance + FLAT)).sqrt().clamp(1 / GAIN, GAIN)
    return torch.where(count > 0, (source - mean) * gain + wanted, source)


def _widened(mask: Tensor, pixels: int) -> Tensor:
    """By a square, which is enough for statistics."""
    for side in ((2 * pixels + 1, 1), (1, 2 * pixels + 1)):
        mask = F.max_pool2d(mask, side, 1, (side[0] // 2, side[1] // 2))
    return mask
