"""One call of a UNet that keeps what lazy calls need of the whole map, or one that computes tiles of it from that.

A lazy call runs the network's own forward: the first convolution makes a strip of the tiles, everything that works cell
by cell runs on it as on any map, and these are stood in for, module by module, as long as the call lasts:

    convolutions     are given what was around the tiles
    group norms      use the recorded statistics, corrected by what the tiles' own values have changed
    self-attentions  see recorded keys and values of all other cells behind the fresh ones
    where maps get too small for tiles, the strip is put into the recorded map, which is computed whole from there on
    the last convolution's answer is put back in its place, among zeros

Sources: FISEdit (Yu et al. 2024), SIGE (Li et al. 2022).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..sparse.group_norm import PartStatistics, affine, scale_and_shift
from ..sparse.tiles import TileLevel, TilePyramid
from .kv_cache import PROBES, CacheReader, CacheWriter
from .unet_parts import UNetParts

Forward = Callable[..., Tensor]


class TiledUNet:
    """A UNet with the tiles of one canvas.

    hole: [H, W] bool, cells of the latents; computed: the same with those around them that are computed too
    smallest: shorter side of the smallest map that is computed in tiles
    corrected: whether group norms' statistics are corrected
    """

    def __init__(self, parts: UNetParts, hole: Tensor, computed: Tensor, smallest: int, corrected: bool = True):
        self.parts, self.corrected = parts, corrected
        self.pyramid = TilePyramid(hole, computed, parts.resolutions, smallest)
        self.levels = self.pyramid.levels
        self.watched = [watched_places(level, hole, 2**i) for i, level in enumerate(self.levels)]
        self.affine: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # weight and bias of group norms
        self.doubling_convs: set[Any] = {layer.conv for layer in parts.doubling}

    @property
    def share(self) -> float:
        """Of the map that is computed; 1 where nothing is left out."""
        return self.pyramid.share

    def bytes(self, batch: int, size: int, kept_size: int) -> int:
        """What a recording keeps: borders and statistics, the maps where tiles end, keys and values of other cells.

        size, kept_size: bytes of a number, and of one among keys and values
        """
        total = 0
        conv: Any
        for conv, level in self.parts.convs.items():
            if level < len(self.levels) and not self.from_whole(conv, level):
                here = self.levels[level]
                cells = math.prod(here.size) if self.into_whole(conv, level) else here.count * len(here.border)
                total += cells * conv.in_channels * size
        total += sum(4 * norm.num_groups * 4 for norm, level in self.parts.norms.items() if level < len(self.levels))
        for attention, level in self.parts.attentions.items():
            if level < len(self.levels):
                total += 2 * len(self.levels[level].others) * attention.to_k.out_features * kept_size
        return batch * total

    def into_whole(self, conv: nn.Module, level: int) -> bool:
        """Whether a convolution leads from tiles to a map that has none."""
        return conv in self.parts.halving and level == len(self.levels) - 1

    def from_whole(self, conv: nn.Module, level: int) -> bool:
        """Whether it leads back."""
        return level == len(self.levels) - 1 and level + 1 < self.parts.resolutions and conv in self.doubling_convs

    @contextmanager
    def calling(self, action: CacheWriter | CacheReader) -> Iterator[None]:
        """While it lasts, a call of the network records or is lazy."""
        call = RecordingCall(self, action) if isinstance(action, CacheWriter) else LazyCall(self, action)
        before: list[tuple[nn.Module, Any]] = []
        try:
            for module, stand_in in call.stand_ins():
                before.append((module, vars(module).get("forward")))
                module.forward = partial(stand_in, module, module.forward)
            yield
        finally:
            for module, forward in reversed(before):
                del module.forward
                if forward is not None:
                    module.forward = forward


StandIn = Callable[..., Any]  # called with a module, its forward and what that is called with


class UNetCall(ABC):
    """What stands in for the modules of a UNet in one call."""

    def __init__(self, unet: TiledUNet):
        self.unet, self.parts, self.levels = unet, unet.parts, unet.levels

    def stand_ins(self) -> Iterator[tuple[Any, StandIn]]:
        tiled = len(self.levels)
        for conv, level in self.parts.convs.items():
            if level < tiled:
                yield conv, partial(self.conv, self.levels[level], level)
        for norm, level in self.parts.norms.items():
            if level < tiled:
                yield norm, partial(self.norm, self.levels[level])
        for attention, level in self.parts.attentions.items():
            if level < tiled:
                yield attention.to_k, partial(self.keys, level, attention.to_v)
                yield attention.to_v, self.values

    @abstractmethod
    def conv(self, level: TileLevel, number: int, conv: Any, forward: Forward, x: Tensor, *args: Any) -> Tensor: ...

    @abstractmethod
    def norm(self, level: TileLevel, norm: Any, forward: Forward, x: Tensor) -> Tensor: ...

    @abstractmethod
    def keys(self, number: int, to_v: nn.Module, to_k: nn.Module, forward: Forward, x: Tensor) -> Tensor:
        """Of a self-attention on resolution `number`; its values are asked for next."""

    @abstractmethod
    def values(self, to_v: nn.Module, forward: Forward, x: Tensor) -> Tensor: ...

    def affine_of(self, norm: Any, like: Tensor, forward: Forward) -> tuple[Tensor, Tensor]:
        if norm not in self.unet.affine:
            self.unet.affine[norm] = affine(norm, like, forward)
        return self.unet.affine[norm]


class RecordingCall(UNetCall):
    """A call that computes everything, as it always does."""

    def __init__(self, unet: TiledUNet, action: CacheWriter):
        super().__init__(unet)
        self.action, self.number = action, 0  # of the attention in progress, its resolution
        self.latest: Tensor  # and its keys

    def conv(self, level: TileLevel, number: int, conv: Any, forward: Forward, x: Tensor, *args: Any) -> Tensor:
        if self.unet.into_whole(conv, number):
            self.action.keep_map(x.clone())  # skip connections are added to in place
        elif not self.unet.from_whole(conv, number):
            self.action.keep_map(level.borders(x))
        return forward(x, *args)

    def norm(self, level: TileLevel, norm: Any, forward: Forward, x: Tensor) -> Tensor:
        part = level.on_map(level.strip(x))
        self.action.keep_map(torch.stack(PartStatistics.of(x, part, norm.num_groups), 1))
        return forward(x)

    def keys(self, number: int, to_v: nn.Module, to_k: nn.Module, forward: Forward, x: Tensor) -> Tensor:
        self.number, self.latest = number, forward(x)
        return self.latest

    def values(self, to_v: nn.Module, forward: Forward, x: Tensor) -> Tensor:
        v, level = forward(x), self.levels[self.number]
        watched = level.targets[self.unet.watched[self.number]]
        self.action(self.latest, v, level.others, watched)
        del self.latest
        return v


class LazyCall(UNetCall):
    """A call that computes tiles."""

    def __init__(self, unet: TiledUNet, action: CacheReader):
        super().__init__(unet)
        self.action = action
        self.latest: Tensor  # values of the attention in progress

    def stand_ins(self) -> Iterator[tuple[Any, StandIn]]:
        yield self.parts.first, self.begin
        yield from super().stand_ins()
        for layer, level in self.parts.doubling.items():
            if self.unet.from_whole(layer.conv, level):  # type: ignore[arg-type]
                yield layer, partial(self.double, self.levels[level])

    def begin(self, conv: Any, forward: Forward, x: Tensor) -> Tensor:
        return self.levels[0].joined(unpadded(conv, forward, self.levels[0].with_halo(x)))

    def conv(self, level: TileLevel, number: int, conv: Any, forward: Forward, x: Tensor, *args: Any) -> Tensor:
        if self.unet.into_whole(conv, number):
            return forward(level.put(x, self.action.next_map(x)), *args)
        if self.unet.from_whole(conv, number):
            return level.joined(unpadded(conv, forward, level.with_halo(x), *args))
        x = level.joined(unpadded(conv, forward, level.padded(x, self.action.next_map(x)), *args))
        return level.put(x, x.new_zeros(*x.shape[:2], *level.size)) if conv is self.parts.last else x

    def double(self, level: TileLevel, layer: Any, forward: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """To the size of the whole map, whatever is told of that of the strip."""
        if "output_shape" in kwargs:  # the original name; else it is diffusers'
            return forward(x, output_shape=(*x.shape[:2], *level.size))
        return forward(x, output_size=level.size)

    def norm(self, level: TileLevel, norm: Any, forward: Forward, x: Tensor) -> Tensor:
        old = PartStatistics(*self.action.next_map(x).unbind(1))
        mean, variance = old.mean, old.variance
        if self.unet.corrected:
            count = math.prod(level.size) * x.shape[1] // norm.num_groups
            mean, variance = old.updated(level.on_map(x), count)
        scale, shift = scale_and_shift(mean, variance + norm.eps, *self.affine_of(norm, x, forward))
        return torch.addcmul(shift, x.float(), scale).to(x.dtype)

    def keys(self, number: int, to_v: nn.Module, to_k: nn.Module, forward: Forward, x: Tensor) -> Tensor:
        level = self.levels[number]
        if level.outside is not None:
            x = x.index_select(1, level.inside)
        # Values too, because a cache gives both at once; `forward` of theirs is what stands in for it.
        k, self.latest = self.action(forward(x), to_v.forward.args[-1](x), self.unet.watched[number])  # type: ignore
        return k

    def values(self, to_v: nn.Module, forward: Forward, x: Tensor) -> Tensor:
        v, self.latest = self.latest, x[:0]
        return v


def unpadded(conv: Any, forward: Forward, x: Tensor, *args: Any) -> Tensor:
    """A convolution of maps that bring their padding."""
    padding, conv.padding = conv.padding, (0, 0)
    try:
        return forward(x, *args)
    finally:
        conv.padding = padding


def watched_places(level: TileLevel, hole: Tensor, scale: int) -> Tensor:
    """Among the cells of a strip that are on the map, some of those that are visible, or if there are none, of all."""
    touched = nn.functional.max_pool2d(hole[None, None].float(), scale, ceil_mode=True).flatten()
    visible = touched[level.targets] == 0
    places = visible.nonzero().flatten() if bool(visible.any()) else torch.arange(len(visible), device=hole.device)
    return places[:: max(-(-len(places) // PROBES), 1)]
