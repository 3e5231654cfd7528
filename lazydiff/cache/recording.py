"""Recording: keys and values of visible tokens made before a sampling begins, so that none of its steps is dense.

A call that leaves the hole out runs the visible tokens alone, on the canvas made noisy to a few of the sampling's noise
levels, with the sampling's own prompt; then every step computes the hole and its ring, and attends to what was recorded
at the level nearest to its own. The noise is not the sampling's but always the same: what is recorded is a function of
canvas, hole, prompt and levels alone, so that another seed may use it again without any change to its picture.

    RecordingCache    what was recorded on one canvas
    RecordingSession  one sampling: says what is still to be recorded, and tells each call of the model what to read
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..core.tokens import HoleTokens
from .kv_cache import MEGABYTE, CacheFull, CacheReader, CacheSession, CacheWriter, Entry, KVCache, KVSettings, Level

SEED = 0x1A2D  # of the noise on visible tokens, whatever the sampling's


def recorded_noise(shape: Sequence[int]) -> Tensor:
    """The noise [1, …] of recordings, in main memory, for a canvas [B, …] of a shape."""
    return torch.randn(1, *shape[1:], generator=torch.Generator().manual_seed(SEED))


def visible_tokens(hole: HoleTokens) -> HoleTokens:
    """The tokens that a recording call runs: those outside all holes of the batch, the same for every row."""
    outside = torch.ones(1, hole.total, dtype=torch.bool, device=hole.index.device)
    outside[0, hole.index[hole.valid]] = False
    return HoleTokens.from_grid_mask(outside.view(1, *hole.grid))


def automatic_levels(steps: int) -> int:
    """How many noise levels are recorded for a sampling, unless the user says."""
    return 1 if steps < 12 else 2


def recorded_steps(steps: int, levels: int) -> list[int]:
    """At which of a sampling's steps its noise levels are recorded."""
    return [int((i + 0.35) * steps / levels) for i in range(levels)]


# Of which levels in one batch, which of them, and of which prompt.
RecordingName = tuple[tuple[Level, ...], Level, Hashable]


class RecordingCache:
    """What was recorded on one canvas; it dies with its context."""

    def __init__(self, settings: KVSettings):
        self.settings = settings
        self.entries: dict[RecordingName, Entry] = {}

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def count(self) -> int:
        """Recordings that are kept, each of a noise level and a prompt."""
        return len(self.entries)

    @property
    def levels(self) -> set[Level]:
        """Noise levels that are kept, of whatever prompt."""
        return {level for _, level, _ in self.entries}

    def session(self, sigmas: Sequence[float]) -> RecordingSession:
        """Begin a sampling; sigmas: its noise levels, falling."""
        return RecordingSession(self, tuple(sigmas))

    def clear(self) -> None:
        self.entries.clear()


def empty_cache(settings: KVSettings) -> KVCache | RecordingCache:
    return RecordingCache(settings) if settings.recorded else KVCache(settings)


class RecordingSession(CacheSession):
    """One sampling's use of recordings."""

    def __init__(self, cache: RecordingCache, schedule: tuple[float, ...]):
        super().__init__(cache.settings, schedule)
        self.cache = cache
        steps = len(schedule) - 1
        count = min(cache.settings.levels or automatic_levels(steps), steps)
        self.steps = recorded_steps(steps, count)
        self.levels = [schedule[i] for i in self.steps]
        self.together = True  # whether all levels are recorded at once, or each when the sampling comes to it
        self.used: set[Hashable] = set()  # prompts

    def name(self, level: Level, prompt: Hashable) -> RecordingName:
        """How a recording is called: the one that is there, or else the one to make."""
        names = (tuple(self.levels), level, prompt), ((level,), level, prompt)
        return next((name for name in names if name in self.cache.entries), names[0 if self.together else 1])

    def level(self, sigma: float) -> Level:
        """The recorded level that serves a noise level: the nearest by the sampling's steps."""
        step = bisect_left(self.schedule, -sigma, key=lambda level: -level)
        return self.levels[min(range(len(self.steps)), key=lambda i: abs(self.steps[i] - step))]

    def missing(self, sigma: float, prompt: Hashable) -> list[Level]:
        """The levels at which a prompt is to be recorded now, in one batch, before it is sampled at a noise level."""
        level = self.level(sigma)
        if self.name(level, prompt) in self.cache.entries:
            return []
        return list(self.levels) if self.together else [level]

    def record(self, levels: Sequence[Level], prompts: Sequence[Hashable]) -> CacheWriter:
        """The call of the model that records; its batch is [levels·prompts·B]."""
        return CacheWriter(self, levels, prompts)

    def fetch(self, sigma: float, prompt: Hashable, device: torch.device | str) -> None:
        """Bring what a prompt is to read at a noise level to a device, unless it is to wait in main memory anyway."""
        if self.settings.place == "device":
            self.cache.entries[self.name(self.level(sigma), prompt)].to(device)

    def call(self, sigma: float, prompts: Sequence[Hashable]) -> CacheReader:
        """What the model's next call is to read, at a noise level and for the prompts that share its batch."""
        level = self.level(sigma)
        self.used.update(prompts)
        return CacheReader(self, sigma, [self.cache.entries[self.name(level, prompt)] for prompt in prompts])

    def make_room(self, writer: CacheWriter) -> None:
        """Forget what this sampling has not used, and then its other levels, until what a call writes is within the
        limit."""
        limit = self.settings.limit * MEGABYTE
        for name in [*self.unused(), *self.at_other_levels(writer.levels)]:
            if self.cache.bytes + writer.bytes <= limit:
                return
            self.cache.entries.pop(name, None)
        if self.cache.bytes + writer.bytes > limit:
            raise CacheFull(f"one recorded noise level needs more than the memory limit of {self.settings.limit} MB")

    def keep(self, writer: CacheWriter) -> None:
        for level, prompt, entry in writer.written:
            self.cache.entries[tuple(writer.levels), level, prompt] = entry
            self.used.add(prompt)

    def finish(self) -> None:
        """The sampling is over: what it has not used goes."""
        for name in self.unused():
            del self.cache.entries[name]

    def forget_other_levels(self, level: Level) -> bool:
        """Whether there was anything to forget."""
        names = self.at_other_levels([level])
        for name in names:
            del self.cache.entries[name]
        return bool(names)

    def at_other_levels(self, levels: Sequence[Level]) -> list[RecordingName]:
        return [name for name in self.cache.entries if name[1] not in levels]

    def unused(self) -> list[RecordingName]:
        """What serves other samplings alone."""
        used = {self.name(level, prompt) for level in self.levels for prompt in self.used}
        return [name for name in self.cache.entries if name not in used]

    def to(self, device: torch.device | str) -> None:
        """Move everything, unless it is to wait in main memory anyway."""
        if self.settings.place == "device":
            for entry in self.cache.entries.values():
                entry.to(device)
