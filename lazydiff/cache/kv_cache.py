"""The KV cache: keys and values of visible tokens, kept for the steps that compute the hole alone.

They are recorded before the sampling begins, at a few noise levels, by calls that leave the hole out (`recording.py`);
or at anchor steps, at which a stock transformer computes every token, as it always does, and the keys and values that
its attention sees of the tokens outside the hole are kept. In all other steps only hole tokens run; they attend to
their own fresh keys and values and to the kept ones. Nothing is trained. Sources: FISEdit (Yu et al. 2024), carried
over as in InstGenIE (2505.20600) and RegionE (2510.25590).

    KVCache                  what the samplings on one canvas have kept, by schedule, noise level and prompt
    AnchorSession            one sampling with anchor steps: tells each call of the model whether to write or to read
    CacheWriter, CacheReader what such a call does with the keys and values of each of its attentions
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.tokens import HoleTokens
from ..core.transfer import to_main_memory

# Automatic anchors: relative change of the probed keys, see `AnchorSession.moved`. On the trained RegenerateImage 0.25
# takes 4 of 20 steps, 0.15 takes 5.4 and 0.4 takes 3. On the small UNet 0.25 takes 5 and comes within 34.8 dB of the
# full computation, 0.12 takes 8.2 for 42.5 dB (docs/unet-quality.json); who is in a hurry has recordings.
THRESHOLD, UNET_THRESHOLD = 0.25, 0.12
PROBES = 32  # tokens whose keys are compared
FP8 = torch.float8_e4m3fn
MEGABYTE = 2**20


class KVSettings(NamedTuple):
    """How a KV context keeps what it keeps."""

    anchors: int = 0  # steps that compute everything, evenly spaced; 0: none, or as many as the keys' change asks for
    ring: int = 1  # tokens around the hole that are computed with it
    text: bool = False  # whether the text tokens of a joint attention are kept between anchors like visible ones
    precision: Literal["model", "fp8"] = "model"
    place: Literal["device", "host"] = "device"  # where kept tensors wait: where they are used, or in main memory
    limit: int = 0  # MB; 0: none
    reuse: bool = False  # whether samplings go on from the anchors that earlier ones on their canvas have left
    mode: Literal["recorded", "anchors"] = "recorded"  # unless a number of anchors is given
    levels: int = 0  # noise levels to record; 0: as many as the number of steps asks for
    threshold: float = THRESHOLD  # of automatic anchors

    @property
    def recorded(self) -> bool:
        """Whether visible tokens are recorded before a sampling, so that no step of it computes everything."""
        return self.mode == "recorded" and not self.anchors


class CacheFull(Exception):
    """One anchor alone needs more memory than there is or than the user allows."""


def dilate(hole: HoleTokens, ring: int) -> HoleTokens:
    """The tokens to compute: all holes of the batch and `ring` tokens around them, the same for every row."""
    mask = torch.zeros(1, hole.total, device=hole.index.device)
    mask[0, hole.index[hole.valid]] = 1
    mask = F.max_pool2d(mask.view(1, 1, *hole.grid), 2 * ring + 1, stride=1, padding=ring)
    return HoleTokens.from_grid_mask(mask[:, 0] > 0)


def probe_places(hole: HoleTokens, computed: HoleTokens) -> Tensor:
    """Places among the computed tokens of at most `PROBES` whose keys tell how far those of the others have changed:
    of the ring, whose tokens are visible too; without a ring, of the hole."""
    inside = torch.isin(computed.index[0], hole.index[hole.valid])
    places = torch.arange(computed.count, device=inside.device)
    places = places if inside.all() else places[~inside]
    return places[:: max(-(-len(places) // PROBES), 1)]


class CachedTensor(NamedTuple):
    """A tensor that waits for its use, perhaps in fewer bits and elsewhere."""

    data: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, x: Tensor, settings: KVSettings) -> CachedTensor:
        scale = None
        if settings.precision == "fp8":
            scale = (x.abs().amax() / torch.finfo(FP8).max).clamp(min=1e-12)
            x = (x / scale).to(FP8)
        return cls(to_main_memory(x) if settings.place == "host" else x, scale)

    def write(self, place: Tensor) -> None:
        """Bring it back; place: [B, …, tokens, dim], in whose rows it is repeated if it was kept of fewer."""
        for rows in place.split(len(self.data)):
            rows.copy_(self.data[: len(rows)], non_blocking=True)
        if self.scale is not None:
            place.mul_(self.scale.to(place))

    def to(self, device: torch.device | str) -> CachedTensor:
        return CachedTensor(self.data.to(device), None if self.scale is None else self.scale.to(device))


@dataclass(eq=False)
class Entry:
    """What one prompt left at one anchor: keys and values of every attention in the order of the calls."""

    keys: list[CachedTensor] = field(default_factory=list)
    values: list[CachedTensor] = field(default_factory=list)
    probes: list[Tensor] = field(default_factory=list)  # keys of some of the computed tokens
    blocks: list[int] = field(default_factory=list)  # at which of its attentions each block begins, if that was told
    maps: list[CachedTensor] = field(default_factory=list)  # what else a network of convolutions needs

    def to(self, device: torch.device | str) -> None:
        if all(tensor.device == torch.device(device) for tensor in self.tensors[:1]):
            return
        kept_lists = self.keys, self.values, self.maps
        self.keys, self.values, self.maps = ([kept.to(device) for kept in each] for each in kept_lists)
        self.probes = [probe.to(device) for probe in self.probes]

    @property
    def tensors(self) -> list[Tensor]:
        return [*(kept.data for kept in (*self.keys, *self.values, *self.maps)), *self.probes]

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors)


Level = float
Anchor = dict[Hashable, Entry]  # by prompt


class KVCache:
    """What the anchors of samplings on one canvas have kept. Samplings of one schedule share it; it dies with its
    context."""

    def __init__(self, settings: KVSettings):
        self.settings = settings
        self.kept: dict[tuple[float, ...], dict[Level, Anchor]] = {}  # by schedule, the least used first
        self.complete: set[tuple[float, ...]] = set()  # schedules that a sampling has gone through to the end

    @property
    def entries(self) -> list[Entry]:
        return [entry for levels in self.kept.values() for anchor in levels.values() for entry in anchor.values()]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    @property
    def count(self) -> int:
        """Anchors that are kept, of all schedules."""
        return sum(map(len, self.kept.values()))

    def session(self, sigmas: Sequence[float]) -> AnchorSession:
        """Begin a sampling; sigmas: its noise levels, falling."""
        schedule = tuple(sigmas)
        self.kept[schedule] = self.kept.pop(schedule, {})  # the last used
        return AnchorSession(self, schedule)

    def make_room(self, needed: int, keep: Anchor | None) -> None:
        """Forget the least used and noisiest anchors until `needed` bytes more are within the limit, but not `keep`.

        Errors: `CacheFull` when that is not enough.
        """
        limit = self.settings.limit * MEGABYTE
        for levels in list(self.kept.values()):
            for level in sorted(levels, reverse=True):
                if self.bytes + needed <= limit:
                    return
                if levels[level] is not keep:
                    del levels[level]
        if self.bytes + needed > limit:
            raise CacheFull(f"one anchor needs more than the memory limit of {self.settings.limit} MB")

    def clear(self) -> None:
        self.kept.clear()
        self.complete.clear()


class CacheSession(ABC):
    """One sampling's use of what is kept, whichever way that is made."""

    def __init__(self, settings: KVSettings, schedule: tuple[float, ...]):
        self.settings, self.schedule = settings, schedule
        self.dense = False  # whether every step computes everything, whatever is kept
        self.exploring = False  # whether the keys' change is watched
        self.changes: list[tuple[Level, Tensor]] = []  # of the keys, at the latest level
        self.recorded = 0  # calls of the model that computed everything
        self.replayed = 0

    @abstractmethod
    def make_room(self, writer: CacheWriter) -> None:
        """Forget what is needed least until what a call writes is within the limit. Errors: `CacheFull`"""

    @abstractmethod
    def keep(self, writer: CacheWriter) -> None:
        """A call is over, and what it has written serves those that follow."""


class AnchorSession(CacheSession):
    """One sampling with anchor steps: tells each call of the model whether to write or to read."""

    def __init__(self, cache: KVCache, schedule: tuple[float, ...]):
        super().__init__(cache.settings, schedule)
        self.cache = cache
        self.levels = cache.kept[schedule]
        steps = len(schedule) - 1
        count = min(cache.settings.anchors, steps)
        self.planned = [schedule[i * steps // count] for i in range(count)]
        self.dense = 0 < count == steps  # every step is an anchor, whatever earlier samplings have left
        self.exploring = not count and schedule not in cache.complete

    def call(self, sigma: float, prompts: Sequence[Hashable]) -> CacheWriter | CacheReader:
        """What the model's next call is to do, at a noise level and for the prompts that share its batch."""
        level = self.level(sigma)
        anchor = self.levels.get(level, {})
        if not self.dense and all(prompt in anchor for prompt in prompts):
            return CacheReader(self, sigma, [anchor[prompt] for prompt in prompts])
        return CacheWriter(self, [level], prompts)

    def level(self, sigma: float) -> Level:
        """The anchor that serves a noise level: the nearest that is no less noisy, or a new one here."""
        near = [level for level in (self.planned or self.levels) if level >= sigma]
        if not near:
            return self.planned[0] if self.planned else sigma
        return sigma if self.exploring and self.moved(sigma) else min(near)

    def moved(self, sigma: float) -> bool:
        """Whether at the step before this level some prompt's keys had changed by more than the threshold."""
        changes = [change for level, change in self.changes if level > sigma]
        return bool(changes) and float(torch.stack(changes).max()) > self.settings.threshold

    def make_room(self, writer: CacheWriter) -> None:
        self.cache.make_room(writer.bytes, self.levels.get(writer.levels[0]))

    def keep(self, writer: CacheWriter) -> None:
        self.recorded += 1
        self.changes.clear()
        anchor = {prompt: entry for _, prompt, entry in writer.written if entry.keys}
        if not anchor:
            return
        [level] = writer.levels
        if not self.settings.reuse:  # of one sampling, whose noise falls, only the latest is read again
            for passed in self.levels.keys() - {level}:
                del self.levels[passed]
        self.levels.setdefault(level, {}).update(anchor)

    def to(self, device: torch.device | str) -> None:
        """Move what is kept, unless it is to wait in main memory anyway."""
        if self.settings.place == "device":
            for anchor in self.levels.values():
                for entry in anchor.values():
                    entry.to(device)

    def finish(self) -> None:
        """The sampling went through to its end: those that follow need no anchors of their own."""
        self.cache.complete.add(self.schedule)

    def abandon(self) -> None:
        """The sampling was stopped: nothing of its schedule stays."""
        self.cache.kept.pop(self.schedule, None)
        self.cache.complete.discard(self.schedule)


class CacheWriter:
    """A call of the model that computes the tokens to keep, at several levels or for several prompts in one batch."""

    def __init__(self, session: CacheSession, levels: Sequence[Level], prompts: Sequence[Hashable]):
        self.session, self.levels = session, levels
        self.written = [(level, prompt, Entry()) for level in levels for prompt in prompts]

    @property
    def entries(self) -> list[Entry]:
        return [entry for *_, entry in self.written]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    def block(self) -> None:
        """The next block begins."""
        for entry in self.entries:
            entry.blocks.append(len(entry.keys))

    def __call__(self, k: Tensor, v: Tensor, kept: Tensor, probes: Tensor) -> None:
        """Keep what one attention sees of some tokens; k, v: [levels·prompts·B, …, tokens, dim].

        kept, probes: places in the sequence, of the tokens to keep and of those to watch
        Errors: `CacheFull` when this does not fit even alone.
        """
        settings, parts = self.session.settings, len(self.written)
        for entry, key, value in zip(self.entries, k.chunk(parts), v.chunk(parts), strict=True):
            entry.keys.append(CachedTensor.of(key.index_select(-2, kept), settings))
            entry.values.append(CachedTensor.of(value.index_select(-2, kept), settings))
            if self.session.exploring:
                entry.probes.append(key.index_select(-2, probes))
        if settings.limit:
            self.session.make_room(self)

    def keep_map(self, x: Tensor) -> None:
        """Keep a tensor [levels·prompts·B, …] in its own precision. Errors: `CacheFull`"""
        settings = self.session.settings._replace(precision="model")
        for entry, part in zip(self.entries, x.chunk(len(self.written)), strict=True):
            entry.maps.append(CachedTensor.of(part.clone() if len(self.written) > 1 else part, settings))

    def forget(self) -> None:
        """Nothing of this call is to be kept."""
        self.written.clear()

    def end(self) -> None:
        """The call is over."""
        self.session.keep(self)


class CacheReader:
    """A call of the model that computes some of the tokens."""

    def __init__(self, session: CacheSession, sigma: Level, entries: Sequence[Entry]):
        self.session, self.sigma, self.entries = session, sigma, entries
        self.calls = self.blocks = self.maps = 0
        self.change: list[Tensor] = []  # squared norms [2, prompts] of probes, of their difference and of the kept

    def block(self) -> None:
        """The next block begins, whether or not the one before it was computed."""
        self.calls = self.entries[0].blocks[self.blocks]
        self.blocks += 1

    def __call__(self, k: Tensor, v: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the computed tokens, and behind them those that were kept of the others.

        probes: places among the computed tokens of those to watch
        """
        i = self.calls
        self.calls += 1
        if self.session.exploring:
            kept = self.behind(k[..., :0, :], [CachedTensor(entry.probes[i], None) for entry in self.entries]).float()
            fresh = k.index_select(-2, probes).float()
            norms = [x.square().unflatten(0, (len(self.entries), -1)).flatten(1).sum(1) for x in (fresh - kept, kept)]
            self.change.append(torch.stack(norms))
        keys = self.behind(k, [entry.keys[i] for entry in self.entries])
        return keys, self.behind(v, [entry.values[i] for entry in self.entries])

    def behind(self, fresh: Tensor, kept: Sequence[CachedTensor]) -> Tensor:
        """Fresh tokens and behind them the kept ones of each prompt, written once."""
        tokens = fresh.shape[-2]
        whole = fresh.new_empty(*fresh.shape[:-2], tokens + kept[0].data.shape[-2], fresh.shape[-1])
        whole[..., :tokens, :] = fresh
        for one, place in zip(kept, whole[..., tokens:, :].chunk(len(kept)), strict=True):
            one.write(place)
        return whole

    def next_map(self, x: Tensor) -> Tensor:
        """The next of the tensors that `keep_map` was given, for a batch as large as that of x and where that is."""
        rows, kept = len(x) // len(self.entries), [entry.maps[self.maps].data for entry in self.entries]
        self.maps += 1
        whole = [one.to(x.device, non_blocking=True).repeat(rows // len(one), *[1] * (one.ndim - 1)) for one in kept]
        return torch.cat(whole)

    def end(self) -> None:
        self.session.replayed += 1
        if self.change:
            difference, norm = torch.stack(self.change).sum(0)
            # Prompt by prompt: which of them share a batch is the host's choice, and may differ from run to run.
            self.session.changes.append((self.sigma, (difference / norm).sqrt().max()))
