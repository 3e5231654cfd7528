"""At which noise levels visible tokens are recorded, which of them serves which step, and what is forgotten."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lazydiff.cache.kv_cache import CacheFull, KVCache, KVSettings
from lazydiff.cache.recording import (
    RecordingCache,
    RecordingSession,
    automatic_levels,
    empty_cache,
    recorded_noise,
    recorded_steps,
    visible_tokens,
)
from lazydiff.core.tokens import HoleTokens

SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.0]
PLACES = torch.arange(4)


def record(session: RecordingSession, sigma: float, prompt: str, tokens: int = 6) -> list[float]:
    """What a sampling does before a call; returns the levels that it records, of a model with one attention."""
    levels = session.missing(sigma, prompt)
    if levels:
        writer = session.record(levels, [prompt])
        k, v = torch.randn(2, len(levels), 2, tokens, 8)
        writer(k, v, torch.arange(tokens - 2), PLACES[:0])
        writer.end()
    session.fetch(sigma, prompt, "cpu")
    return levels


def test_visible_tokens_are_those_outside_all_holes() -> None:
    mask = torch.rand(3, 5, 7) > 0.8
    expected = (~mask.any(0)).flatten().nonzero().flatten()
    assert torch.equal(visible_tokens(HoleTokens.from_grid_mask(mask)).index[0], expected)


def test_noise_is_the_canvases_alone() -> None:
    first, again = (recorded_noise((rows, 4, 6, 6)) for rows in (1, 3))
    torch.manual_seed(5)
    assert torch.equal(first, again) and torch.equal(first, recorded_noise((2, 4, 6, 6))) and len(first) == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 50])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_levels_are_spread_over_the_steps(steps: int, levels: int) -> None:
    at = recorded_steps(steps, min(levels, steps))
    assert len(set(at)) == len(at) and at == sorted(at) and 0 <= at[0] and at[-1] < steps
    session = RecordingCache(KVSettings(levels=levels)).session([1 - i / steps for i in range(steps + 1)])
    assert len(session.levels) == len(at)


def test_defaults_by_the_number_of_steps() -> None:
    assert [automatic_levels(steps) for steps in (4, 8, 20)] == [1, 1, 2]
    assert (recorded_steps(4, 1), recorded_steps(8, 1), recorded_steps(20, 2)) == ([1], [2], [3, 13])


def test_each_step_reads_the_nearest_level() -> None:
    """By steps, not by the levels' values: those of some models lie far apart. Between steps too."""
    session = RecordingCache(KVSettings(levels=2)).session([150.0, 40.0, 12.0, 5.0, 2.0, 1.0, 0.3, 0.1, 0.0])
    assert session.steps == [1, 5]
    served = [session.level(sigma) for sigma in (150.0, 40.0, 12.0, 5.0, 2.0, 1.0, 0.3, 0.1, 60.0, 1.5)]
    assert served == [40.0] * 4 + [1.0] * 4 + [40.0, 1.0]


def test_a_mode_or_a_number_of_anchors_chooses_the_cache() -> None:
    kinds = [KVSettings(), KVSettings(mode="anchors"), KVSettings(2), KVSettings(2, mode="recorded")]
    assert [type(empty_cache(settings)) for settings in kinds] == [RecordingCache, KVCache, KVCache, KVCache]


def test_all_levels_are_recorded_at_once_and_serve_the_next_sampling() -> None:
    cache = RecordingCache(KVSettings(levels=2))
    for prompts, recorded in ((("a", "b"), 2), (("a", "b"), 0), (("a", "c"), 1), (("b",), 1)):
        session = cache.session(SIGMAS)
        found = [record(session, sigma, prompt) for sigma in SIGMAS[:-1] for prompt in prompts]
        assert [levels for levels in found if levels] == [session.levels] * recorded
        entries = [session.call(0.4, (prompt,)).entries[0] for prompt in prompts]
        session.finish()
        assert cache.count == 2 * len(prompts) and all(entry in cache.entries.values() for entry in entries)


def test_levels_are_recorded_apart_where_a_batch_has_no_room() -> None:
    """And serve whoever comes next, as those of a batch do."""
    cache = RecordingCache(KVSettings(levels=2))
    session = cache.session(SIGMAS)
    session.together = False
    levels = session.levels
    assert [record(session, sigma, "a") for sigma in SIGMAS[:-1]] == [levels[:1], [], levels[1:], []]
    assert not any(record(cache.session(SIGMAS), sigma, "a") for sigma in SIGMAS[:-1])
    assert cache.count == 2 and cache.levels == set(levels)
    assert session.forget_other_levels(levels[1]) and cache.levels == {levels[1]}
    assert not session.forget_other_levels(levels[1])


def megabytes(session: RecordingSession, levels: list[float], prompt: str) -> None:
    """Record keys and values of which each level keeps a megabyte."""
    writer = session.record(levels, [prompt])
    k, v = torch.zeros(2, len(levels), 1, 2**17, 1)
    writer(k, v, torch.arange(2**17), PLACES[:0])
    writer.end()


def test_within_the_limit_what_others_have_left_goes_first() -> None:
    cache = RecordingCache(KVSettings(levels=2, limit=3))
    first = cache.session(SIGMAS)
    megabytes(first, first.levels, "a")
    second = cache.session(SIGMAS)
    megabytes(second, second.levels, "b")
    assert cache.bytes <= 3 * 2**20 and {name[2] for name in cache.entries} == {"a", "b"}
    assert sum(name[2] == "b" for name in cache.entries) == 2
    with pytest.raises(CacheFull, match="memory limit of 3 MB"):
        megabytes(second, second.levels, "c")
    assert sum(name[2] == "b" for name in cache.entries) == 2


def test_a_call_reads_what_was_recorded_for_its_level() -> None:
    cache = RecordingCache(KVSettings(levels=2))
    session = cache.session(SIGMAS)
    made: dict[float, tuple[Tensor, Tensor]] = {level: tuple(torch.randn(2, 1, 2, 6, 8)) for level in session.levels}  # type: ignore[misc]
    writer = session.record(session.levels, ["a"])
    writer(torch.cat([k for k, _ in made.values()]), torch.cat([v for _, v in made.values()]), PLACES, PLACES[:0])
    writer.end()
    for sigma, level in zip(SIGMAS, (session.levels[0],) * 2 + (session.levels[1],) * 2, strict=False):
        fresh = torch.randn(2, 1, 2, 3, 8)
        for own, whole, kept in zip(fresh, session.call(sigma, ("a",))(*fresh, PLACES[:0]), made[level], strict=True):
            assert torch.equal(whole, torch.cat((own, kept[..., :4, :]), dim=-2))
