"""Group norms of a part of a map, by statistics of the whole map that an earlier pass has left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class PartStatistics(NamedTuple):
    """Of one group norm, [B, G] float32: of a whole map, and what a part of it holds of that.

    shift, spread: first and second moment of the part's values about the map's mean, as shares of the whole map
    """

    mean: Tensor
    variance: Tensor
    shift: Tensor
    spread: Tensor

    @classmethod
    def of(cls, x: Tensor, part: Tensor, groups: int) -> PartStatistics:
        """x: [B, C, …], the map; part: [B, C, n], some of it"""
        values = x.float().reshape(len(x), groups, -1)
        variance, mean = torch.var_mean(values, -1, correction=0)
        return cls(mean, variance, *_moments(part, mean, values.shape[-1]))

    def updated(self, part: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of the map with fresh values in the part's place; count: values of a group in the map"""
        shift, spread = _moments(part, self.mean, count)
        moved = shift - self.shift
        return self.mean + moved, (self.variance + spread - self.spread - moved.square()).clamp(min=0)


def _moments(part: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    apart = part.float().reshape(*mean.shape, -1) - mean[..., None]
    return apart.sum(-1) / count, apart.square().sum(-1) / count


def scale_and_shift(mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What a group norm multiplies a map by and adds to it, [B, C, 1, 1] float32.

    mean, variance: [B, G], the latter with the norm's epsilon; weight, bias: [C]
    """
    repeats = weight.shape[-1] // mean.shape[-1]
    scale = variance.rsqrt().repeat_interleave(repeats, 1) * weight
    shift = bias - mean.repeat_interleave(repeats, 1) * scale
    return scale[..., None, None], shift[..., None, None]


def affine(norm: Any, like: Tensor, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias [C] float32 of a group norm. Torch's own has them; others are called: a host may keep them
    elsewhere, or in other bits.

    forward: the norm's own

    Of a map of zeros it gives the bias, and of a spike of 1 in 257 places, which it makes 16 high, the weight.
    """
    if type(norm) is nn.GroupNorm:
        return norm.weight.float(), norm.bias.float()
    spike = like.new_zeros(2, norm.num_channels, 1, 257)
    spike[1, ..., 0] = 64
    bias, peak = forward(spike)[..., 0, 0].float()
    return (peak - bias) / 16, bias
