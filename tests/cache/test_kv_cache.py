"""What is kept of the visible tokens, when it is made anew, what it weighs, and when it is forgotten."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from lazydiff.cache import kv_cache as module
from lazydiff.cache.kv_cache import (
    FP8,
    CachedTensor,
    CacheFull,
    CacheReader,
    CacheSession,
    CacheWriter,
    KVCache,
    KVSettings,
    dilate,
    probe_places,
)
from lazydiff.core.tokens import HoleTokens

SIGMAS = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
PLACES = torch.arange(4)


def keys(seed: int = 0, rows: int = 1, tokens: int = 6, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Keys and values of 2 heads of 8 channels."""
    k, v = scale * torch.randn(2, rows, 2, tokens, 8, generator=torch.Generator().manual_seed(seed))
    return k, v


def step(session: CacheSession, sigma: float, k: Tensor, v: Tensor, prompts: tuple[str, ...] = ("a",)) -> bool:
    """One call of a model with one attention, of tokens 0…5 of which 4 and 5 are computed and watched; whether it
    recorded."""
    call = session.call(sigma, prompts)
    if isinstance(call, CacheWriter):
        call(k, v, PLACES, torch.tensor([4, 5]))
    else:
        call(k[..., 4:, :], v[..., 4:, :], torch.tensor([0, 1]))
    call.end()
    return isinstance(call, CacheWriter)


def recorded(cache: KVCache, scales: list[float], finish: bool = True) -> list[float]:
    """The levels at which a sampling records whose keys are scaled so at its steps."""
    session, levels = cache.session(SIGMAS), []
    for sigma, scale in zip(SIGMAS, scales, strict=False):
        if step(session, sigma, *keys(scale=scale)):
            levels.append(sigma)
    if finish:
        session.finish()
    return levels


# Which tokens


@pytest.mark.parametrize("ring", [0, 1, 2])
def test_ring_is_what_a_slow_loop_finds(ring: int) -> None:
    mask = torch.rand(2, 7, 9) > 0.93
    mask[:, 0, 8] = True  # at the border
    near = torch.zeros(7, 9, dtype=torch.bool)
    for row, y, x in product(range(2), range(7), range(9)):
        if mask[row, y, x]:
            near[max(y - ring, 0) : y + ring + 1, max(x - ring, 0) : x + ring + 1] = True
    computed = dilate(HoleTokens.from_grid_mask(mask), ring)
    assert not computed.padded and torch.equal(computed.index[0], near.flatten().nonzero()[:, 0])


def test_padding_of_a_batch_is_no_hole() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 2:, 2:] = mask[1, 3, 3] = True  # the second row is padded with token 0
    assert dilate(HoleTokens.from_grid_mask(mask), 0).index.tolist() == [[10, 11, 14, 15]]


def test_probes_are_visible_tokens_where_there_are_any() -> None:
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, 2:9, 3:9] = True
    hole = HoleTokens.from_grid_mask(mask)
    for ring in (1, 2):
        computed = dilate(hole, ring)
        watched = computed.index[0, probe_places(hole, computed)]
        assert 0 < len(watched) <= module.PROBES and not torch.isin(watched, hole.index[0]).any()
    alone = dilate(hole, 0)
    watched = alone.index[0, probe_places(hole, alone)]
    assert 0 < len(watched) <= module.PROBES and torch.isin(watched, hole.index[0]).all()


# Which steps


@pytest.mark.parametrize(
    ("count", "levels"), [(1, [1.0]), (2, [1.0, 0.6]), (4, [1.0, 0.8, 0.6, 0.4]), (5, SIGMAS[:5]), (9, SIGMAS[:5])]
)
def test_fixed_anchors_are_spread_over_the_steps(count: int, levels: list[float]) -> None:
    cache = KVCache(KVSettings(anchors=count, reuse=True))
    assert recorded(cache, [1] * 5) == levels and cache.count == len(levels)


@pytest.mark.parametrize("settings", [KVSettings(anchors=4), KVSettings()])
def test_without_reuse_an_anchor_stays_until_the_next(settings: KVSettings) -> None:
    """What the steps see is what they see when all are kept."""
    alone, all_kept = KVCache(settings), KVCache(settings._replace(reuse=True))
    kept, (k, v) = [], keys()
    one, other = alone.session(SIGMAS), all_kept.session(SIGMAS)
    for i, sigma in enumerate(SIGMAS[:5]):
        assert step(one, sigma, (1 + i) * k, v) == step(other, sigma, (1 + i) * k, v)
        seen = [session.call(sigma, ("a",))((1 + i) * k[..., 4:, :], v[..., 4:, :], torch.tensor([0, 1]))[0]
                for session in (one, other)]  # fmt: skip
        assert torch.equal(*seen)
        kept.append((alone.count, all_kept.count))
    assert {few for few, _ in kept} == {1} and kept[-1][1] > 1
    assert step(one, 0.9, k, v)  # a sampler that goes back up
    assert alone.count == 1


def test_without_reuse_prompts_in_calls_of_their_own_share_an_anchor() -> None:
    session, (k, v) = KVCache(KVSettings(anchors=2)).session(SIGMAS), keys()
    for sigma, records in ((1.0, True), (0.8, False), (0.6, True), (0.4, False)):
        assert [step(session, sigma, k, v, (prompt,)) for prompt in ("a", "b")] == [records, records]
        [anchor] = session.levels.values()
        assert set(anchor) == {"a", "b"}


def test_each_step_replays_the_nearest_anchor_that_is_no_less_noisy() -> None:
    cache = KVCache(KVSettings(anchors=2))
    session = cache.session(SIGMAS)
    made = {sigma: keys(i) for i, sigma in enumerate(SIGMAS)}
    for sigma, serves in ((1.0, 1.0), (0.8, 1.0), (0.6, 0.6), (0.4, 0.6), (0.2, 0.6)):
        call = session.call(sigma, ("a",))
        if isinstance(call, CacheWriter):
            call(*made[sigma], PLACES, PLACES)
        else:
            fresh = keys(9, tokens=2)
            for own, extended, kept in zip(fresh, call(*fresh, PLACES), made[serves], strict=True):
                assert torch.equal(extended, torch.cat((own, kept[..., :4, :]), dim=-2))
        call.end()


def test_automatic_anchors_follow_the_change_of_the_keys() -> None:
    """A step records when at the one before it the keys were further from the anchor's than the threshold."""
    less, more = 1 + 0.9 * module.THRESHOLD, 1 + 1.1 * module.THRESHOLD
    assert recorded(KVCache(KVSettings()), [1, 1, 1, 1, 1]) == [1.0]
    assert recorded(KVCache(KVSettings()), [1, less, less, less, 1]) == [1.0]
    assert recorded(KVCache(KVSettings()), [1, more, more, more, more]) == [1.0, 0.6]
    assert recorded(KVCache(KVSettings()), [1, less, more, 1, 1]) == [1.0, 0.4]


def test_the_prompt_whose_keys_change_most_decides() -> None:
    cache = KVCache(KVSettings())
    session = cache.session(SIGMAS)
    (k, v), more = keys(rows=2), torch.tensor([1.0, 1 + 2 * module.THRESHOLD]).view(2, 1, 1, 1)
    assert step(session, 1.0, k, v, ("a", "b"))
    for sigma, scale in ((0.8, 1.0), (0.8, more)):  # both branches of guidance, one call each or together
        call = session.call(sigma, ("a", "b"))
        assert isinstance(call, CacheReader)
        call((k * scale)[..., 4:, :], v[..., 4:, :], torch.tensor([0, 1]))
        call.end()
    assert step(session, 0.6, k, v, ("a", "b"))


def test_anchors_do_not_depend_on_which_prompts_share_a_call() -> None:
    """One prompt's keys change a little more than the threshold, the other's not at all."""
    (k, v), more = keys(rows=2), torch.tensor([1.0, 1 + 1.1 * module.THRESHOLD]).view(2, 1, 1, 1)
    found = []
    for calls in ([("a", "b")], [("a",), ("b",)]):
        session = KVCache(KVSettings()).session(SIGMAS)
        for sigma, scaled in ((1.0, k), (0.8, k * more)):
            for rows in calls:
                some = [("a", "b").index(prompt) for prompt in rows]
                step(session, sigma, scaled[some], v[some], rows)
        change = float(max(change for _, change in session.changes))
        found.append((change, step(session, 0.6, k, v, ("a", "b"))))
    (together, records), alone = found
    assert records and alone == (pytest.approx(together), True)


# Who shares them


def test_later_samplings_of_the_schedule_record_nothing() -> None:
    cache = KVCache(KVSettings(reuse=True))
    recorded(cache, [1, 1.5, 1.5, 1, 1])
    kept = cache.bytes
    assert recorded(cache, [3, 1, 5, 1, 7]) == [] and cache.bytes == kept


def test_a_sampling_that_was_stopped_leaves_the_rest_to_the_next() -> None:
    cache = KVCache(KVSettings(reuse=True))
    assert recorded(cache, [1, 1], finish=False) == [1.0]
    assert recorded(cache, [1, 1.5, 1.5, 1.5, 1.5]) == [0.6]
    assert recorded(cache, [1, 9, 9, 9, 9]) == []


def test_a_block_that_is_left_out_takes_its_attentions_with_it() -> None:
    """Blocks of one, two and one attentions; the second makes none of its own when it is replayed."""
    session, made = KVCache(KVSettings(anchors=1)).session(SIGMAS), [keys(seed) for seed in range(4)]
    call = session.call(1.0, ("a",))
    for block in (made[:1], made[1:3], made[3:]):
        call.block()
        for k, v in block:
            call(k, v, PLACES, torch.tensor([4, 5]))
    call.end()
    call = session.call(0.8, ("a",))
    for block in (made[:1], [], made[3:]):
        call.block()
        for k, v in block:
            found = call(k[..., 4:, :], v[..., 4:, :], torch.tensor([0, 1]))
            assert all(torch.equal(a[..., 2:, :], b[..., :4, :]) for a, b in zip(found, (k, v), strict=True))


def test_another_schedule_has_anchors_of_its_own() -> None:
    cache = KVCache(KVSettings(anchors=2, reuse=True))
    recorded(cache, [1] * 5)
    session = cache.session([1.0, 0.5, 0.0])
    assert step(session, 1.0, *keys()) and step(session, 0.5, *keys()) and cache.count == 4
    assert recorded(cache, [1] * 5) == []


def test_another_prompt_of_the_same_sampling_is_recorded_beside_the_first() -> None:
    cache = KVCache(KVSettings(anchors=1))
    session = cache.session(SIGMAS)
    assert step(session, 1.0, *keys(), ("a",)) and step(session, 1.0, *keys(), ("b",))
    assert not step(session, 0.8, *keys(rows=2), ("a", "b")) and cache.count == 1


def test_fewer_pictures_serve_more_and_more_serve_fewer() -> None:
    cache = KVCache(KVSettings(anchors=1))
    session = cache.session(SIGMAS)
    k, v = keys(rows=4)
    step(session, 1.0, k, v, ("a", "b"))  # two pictures, two prompts
    for rows, order in ((2, [0, 2]), (4, [0, 1, 2, 3]), (8, [0, 1, 0, 1, 2, 3, 2, 3])):
        call = session.call(0.8, ("a", "b"))
        assert isinstance(call, CacheReader)
        extended, _ = call(*keys(rows=rows, tokens=2), PLACES[:1])
        assert torch.equal(extended[..., 2:, :], k[order][..., :4, :])


# What it weighs


def test_bytes_are_those_of_keys_and_values() -> None:
    """2 heads × 8 channels × 4 tokens × 4 bytes, twice, for each anchor; and when exploring the keys of 2 probes."""
    fixed, automatic = KVCache(KVSettings(anchors=5, reuse=True)), KVCache(KVSettings(reuse=True))
    recorded(fixed, [1] * 5)
    recorded(automatic, [1] * 5)
    assert fixed.bytes == 5 * 2 * (2 * 8 * 4 * 4) == sum(
        t.untyped_storage().nbytes() for entry in fixed.entries for t in entry.tensors
    )
    assert automatic.bytes == 2 * (2 * 8 * 4 * 4) + 2 * 8 * 2 * 4
    fixed.clear()
    assert fixed.bytes == fixed.count == 0 and recorded(fixed, [1] * 5)


def written(kept: CachedTensor, like: torch.Tensor) -> torch.Tensor:
    """What is kept, brought back as it is for an attention."""
    place = torch.empty_like(like)
    kept.write(place)
    return place


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_eight_bits_cost_a_sixteenth_at_most(size: float) -> None:
    """e4m3 has three bits behind the point: half a step of 1/8 of the value; near zero half the smallest step, 2⁻¹⁰ of
    448ths of the largest value."""
    x = size * torch.randn(1000)
    kept = CachedTensor.of(x, KVSettings(precision="fp8"))
    assert kept.data.dtype == FP8 and kept.data.nbytes == x.numel()
    assert ((written(kept, x) - x).abs() <= x.abs() / 16 + x.abs().max() * 2**-10 / 448 * 1.01).all()
    assert torch.equal(written(CachedTensor.of(0 * x, KVSettings(precision="fp8")), x), 0 * x)


def test_main_memory_keeps_the_very_numbers() -> None:
    k, _ = keys()
    assert torch.equal(written(CachedTensor.of(k, KVSettings(place="host")), k), k)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["model", "fp8"])
def test_main_memory_holds_what_the_device_does_not(precision: str) -> None:
    k = keys()[0].cuda()
    kept = CachedTensor.of(k, KVSettings(place="host", precision=precision))  # type: ignore[arg-type]
    there = CachedTensor.of(k, KVSettings(precision=precision))  # type: ignore[arg-type]
    torch.cuda.synchronize()
    assert kept.data.device.type == "cpu" and kept.data.is_pinned()
    assert torch.equal(written(kept, k), written(there, k))


def large() -> tuple[Tensor, Tensor]:
    """Keys and values of which an anchor keeps a megabyte."""
    k, v = torch.zeros(2, 1, 1, 2**17 + 2, 1)
    return k, v


def record_large(session: CacheSession, sigma: float) -> None:
    call = session.call(sigma, ("a",))
    assert isinstance(call, CacheWriter)
    call(*large(), torch.arange(2**17), torch.tensor([0]))
    call.end()


def test_within_the_limit_the_noisiest_anchor_of_the_least_used_schedule_goes_first() -> None:
    cache = KVCache(KVSettings(anchors=2, limit=3, reuse=True))
    for schedule in (SIGMAS, [1.0, 0.5, 0.0]):
        session = cache.session(schedule)
        for level in session.planned:
            record_large(session, level)
            assert cache.bytes <= 3 * 2**20
    first, second = cache.kept.values()
    assert list(first) == [0.6] and list(second) == [1.0, 0.5]
    record_large(cache.session(SIGMAS), 1.0)  # what was forgotten is recorded again
    assert [list(levels) for levels in cache.kept.values()] == [[0.5], [0.6, 1.0]]


def test_an_anchor_beyond_the_limit_is_told() -> None:
    cache = KVCache(KVSettings(anchors=1, limit=1))
    call = cache.session(SIGMAS).call(1.0, ("a", "b"))
    assert isinstance(call, CacheWriter)
    k, v = (x.expand(2, -1, -1, -1) for x in large())
    with pytest.raises(CacheFull, match="memory limit of 1 MB"):
        call(k, v, torch.arange(2**17), torch.tensor([0]))
    assert cache.bytes == 0
