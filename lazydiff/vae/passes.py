"""Passes through the stages of a VAE: one that keeps what its global operators knew, one that computes boxes of the map
from that, one that only counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sparse.boxes import Box, Size, size_of
from ..sparse.group_norm import affine, scale_and_shift
from .stages import Patch, Stage, needed

RIDGE = 0.1  # of the variance among all cells' means: found with the trained VAE of benchmarks/vae_edits.py
CELL = 2  # latents: statistics are kept by squares of this side, 31 MB for 1024 px


class Statistics(NamedTuple):
    """Of one group norm, float32."""

    mean: Tensor  # [B, G]
    variance: Tensor  # with the norm's epsilon
    cells: Tensor  # [B, 2, G, h, w], mean and variance of every cell, for what an edit changes of the above

    def updated(self, patches: Sequence[Patch], probe: Patch | None) -> Statistics:
        """With fresh cells in the place of old ones, their difference added to what the norm itself had found.

        New statistics in the norms before shift and scale the whole map, of which the patches are but a part, and this
        norm would take most of that away again. So what the probe's cells, far from any edit, have gone through is
        taken for what all unseen cells have.
        """
        cells = put(self.cells if probe is None else _drifted(self.cells, probe), patches)
        mean, variance = _change(self.cells, cells).unbind(1)
        return Statistics(self.mean + mean, self.variance + variance, cells)


class VAEState(NamedTuple):
    """What a pass leaves for the next edit of its canvas; immutable."""

    output: Tensor  # [B, C, H, W], the image of a decode or the moments of an encode
    statistics: tuple[Statistics, ...]  # of each group norm
    keys: tuple[Tensor, ...]  # of each attention [B, C, h, w]
    values: tuple[Tensor, ...]

    def expand(self, batch: int) -> VAEState:
        """One canvas for several samples, without copies."""

        def many(x: Tensor) -> Tensor:
            return x.expand(batch, *x.shape[1:])

        statistics = tuple(Statistics(*map(many, one)) for one in self.statistics)
        return VAEState(many(self.output), statistics, tuple(map(many, self.keys)), tuple(map(many, self.values)))


def macs(stages: Sequence[Stage], size: Size, target: Box) -> int:
    """Multiply-adds of convolutions and attention for a box of the output, per item; size: of the input."""
    count = MacCounter()
    run_stages(count, stages, torch.empty(1, 1, *size, device="meta"), [target])
    return count.macs


def run_stages(run: FullPass, stages: Sequence[Stage], x: Tensor, targets: Sequence[Box]) -> list[Patch]:
    """The boxes of the output. Each stage gets no more than the ones after it need."""
    plans = [needed(stages, target, size_of(x)) for target in targets]
    patches = [Patch(x, Box.whole(size_of(x)), size_of(x)) for _ in targets]
    for i, stage in enumerate(stages):
        patches = stage.apply(run, [patch.cut(plan[i]) for patch, plan in zip(patches, plans, strict=True)])
    return [patch.cut(target) for patch, target in zip(patches, targets, strict=True)]


class FullPass:
    """A pass over the whole map that keeps what a lazy one will need."""

    def __init__(self, latent: Size):
        side = math.gcd(*latent, CELL)
        self.grid = latent[0] // side, latent[1] // side  # of the cells
        self.statistics: list[Statistics] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def state(self, output: Tensor) -> VAEState:
        return VAEState(output, tuple(self.statistics), tuple(self.keys), tuple(self.values))

    def call(self, module: nn.Module, x: Tensor) -> Tensor:
        result: Tensor = module(x)
        return result

    def conv(self, module: Any, patches: list[Patch]) -> list[Patch]:
        margin = module.kernel_size[0] // 2
        # The module pads with zeros, which is only true at the border of the map.
        return [p._replace(x=self.call(module, p.x)).cut(p.box.shrunk(margin, p.size)) for p in patches]

    def norm(self, module: Any, patches: list[Patch], silu: bool = True) -> list[Patch]:
        (patch,) = patches
        normal = module(patch.x)
        # Statistics of torch's own kernel, not of the cells: on CPUs and channels last they have but four digits on a
        # large map, and a lazy decode is to agree with the full one. Which kernel ran, its result's layout tells.
        layout = torch.contiguous_format if normal.is_contiguous() else torch.channels_last
        x = patch.x.float()
        cells = self._cells(module, patch._replace(x=x)).x
        x = x.contiguous(memory_format=layout)
        _, mean, scale = torch.native_group_norm(
            x, None, None, len(x), x.shape[1], math.prod(patch.size), module.num_groups, module.eps
        )
        self.statistics.append(Statistics(mean, scale**-2, cells))
        return [patch._replace(x=F.silu(normal, inplace=True) if silu else normal)]

    def attend(self, queries: list[Patch], keys: list[Patch], values: list[Patch]) -> list[Patch]:
        self.keys.append(keys[0].x)
        self.values.append(values[0].x)
        return self._attend(queries)

    def _attend(self, queries: list[Patch]) -> list[Patch]:
        """To the latest keys and values, which are those of the whole map."""
        k, v = (x.flatten(2).transpose(1, 2)[:, None].contiguous() for x in (self.keys[-1], self.values[-1]))
        result = []
        for query in queries:
            q = query.x.flatten(2).transpose(1, 2)[:, None].contiguous()  # [B, 1, n, C], one head
            x = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(query.x.shape)
            result.append(query._replace(x=x))
        return result

    def _cells(self, module: Any, patch: Patch) -> Patch:
        """Mean and variance [B, 2, G, h, w] of the cells that lie wholly inside a float32 patch, as a patch of all."""
        side = patch.size[0] // self.grid[0]
        inner = patch.box.inner(side)
        if not all(inner.size):
            return Patch(patch.x.new_zeros(()), inner, self.grid)
        x = patch.cut(inner.scaled(side)).x
        moments = torch.stack([F.avg_pool2d(each, side) for each in (x, x * x)], 1)
        moments = moments.unflatten(2, (module.num_groups, -1)).mean(3)
        moments[:, 1].addcmul_(moments[:, 0], moments[:, 0], value=-1)
        return Patch(moments, inner, self.grid)


class SparsePass(FullPass):
    """A pass over boxes of the map that takes the rest from a state, and keeps what the next one will need."""

    def __init__(self, latent: Size, old: VAEState, probed: bool):
        super().__init__(latent)
        self.old, self.probed = old, probed  # probed: the last box is no part of the edit

    def norm(self, module: Any, patches: list[Patch], silu: bool = True) -> list[Patch]:
        old = self.old.statistics[len(self.statistics)]
        single = [patch._replace(x=patch.x.float()) for patch in patches]
        cells = [self._cells(module, patch) for patch in single]
        fresh = [patch for patch in cells if all(patch.box.size)]
        self.statistics.append(old.updated(fresh, cells[-1] if self.probed else None))
        mean, variance, _ = self.statistics[-1]
        scale, shift = scale_and_shift(mean, variance.clamp(min=module.eps), *affine(module, patches[0].x, module))
        result = []
        for patch, wide in zip(patches, single, strict=True):
            x = torch.addcmul(shift, wide.x, scale).to(patch.x.dtype)
            result.append(patch._replace(x=F.silu(x, inplace=True) if silu else x))
        return result

    def attend(self, queries: list[Patch], keys: list[Patch], values: list[Patch]) -> list[Patch]:
        index = len(self.keys)
        self.keys.append(put(self.old.keys[index], keys))
        self.values.append(put(self.old.values[index], values))
        return self._attend(queries)


class MacCounter(FullPass):
    """A pass over tensors without data that counts multiply-adds."""

    def __init__(self) -> None:
        self.macs = 0

    def call(self, module: Any, x: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            out = x.new_empty(*x.shape[:-1], module.out_features)
        else:
            space = zip(x.shape[2:], module.kernel_size, module.padding, module.stride, strict=True)
            out = x.new_empty(len(x), module.out_channels, *((n + 2 * p - k) // s + 1 for n, k, p, s in space))
        self.macs += out.numel() * module.weight[0].numel()
        return out

    def norm(self, module: Any, patches: list[Patch], silu: bool = True) -> list[Patch]:
        return patches

    def attend(self, queries: list[Patch], keys: list[Patch], values: list[Patch]) -> list[Patch]:
        self.macs += sum(2 * query.x.numel() * math.prod(query.size) for query in queries)
        return queries


def put(whole: Tensor, patches: Sequence[Patch]) -> Tensor:
    """A copy of a map in which patches have replaced what was there."""
    whole = whole.clone()
    for patch in patches:
        patch.box.of(whole).copy_(patch.x)
    return whole


def _drifted(cells: Tensor, probe: Patch) -> Tensor:
    """Cells [B, 2, G, h, w] after what the probe's have gone through.

    A norm of another scale moves means by how far they lie from its own: the change is a line over the old mean, as
    steep as the probe's cells show. Where they are too alike to show it, RIDGE keeps it flat.
    """
    pair = torch.stack((probe.box.of(cells), probe.x))  # old and new [2, B, 2, G, h, w]
    (middle, old_variance), (middle_now, variance) = (each.unbind(1) for each in pair.mean((-2, -1), keepdim=True))
    apart, now = pair[:, :, 0] - middle
    # Of the old means with the new and with themselves; the change is the difference of the two.
    with_now, with_old = (torch.stack((now, apart)) * apart).mean((-2, -1), keepdim=True)
    spread = cells[:, 0].var((-2, -1), correction=0, keepdim=True)
    steep = ((with_now - with_old) / torch.add(with_old, spread, alpha=RIDGE).clamp(min=1e-12)).clamp(-0.5, 0.5)
    ratio = (variance / old_variance.clamp(min=1e-12)).clamp(0.5, 2)
    line = torch.addcmul(middle_now, cells[:, 0] - middle, 1 + steep)
    return torch.stack((line, cells[:, 1] * ratio), 1)


def _change(old: Tensor, new: Tensor) -> Tensor:
    """Of mean and variance [B, 2, G] of the whole map, from those of its cells, which are all of one size."""
    cells = torch.stack((old, new)).flatten(4)  # [2, B, 2, G, h·w]
    total = cells.mean(-1)
    total[:, :, 1].add_(cells[:, :, 0].var(-1, correction=0))
    return total[1] - total[0]
