"""The baselines that compute every token, and how a KV cache lets one compute fewer: against full passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from samples import scene, tiny_model
from torch import Tensor

from lazydiff.cache.kv_cache import KVCache, KVSettings, dilate
from lazydiff.cache.recording import RecordingCache, recorded_noise, visible_tokens
from lazydiff.core.tokens import HoleTokens
from lazydiff.evaluation.regenerate import dense_denoiser, encode_everything, paint_baseline, regenerate, sample_dense
from lazydiff.model.config import Sampling
from lazydiff.model.context import LazyContext
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.sampling.samplers import SAMPLERS, make_sampler

PROMPTS, SEEDS = ["a red tree", "another one"], [3, 4]


def canvas(model: LazyDiffusion, number: int = 1) -> LazyContext:
    return encode_everything(model, *scene(number)[:2])


def noisy(context: LazyContext, rows: int = 2) -> Tensor:
    return torch.randn(rows, context.hole.count, context.canvas.shape[-1])


@contextmanager
def spied() -> Iterator[list[tuple[Tensor, HoleTokens]]]:
    """What each call of a decoder was given: tokens and their places."""
    calls: list[tuple[Tensor, HoleTokens]] = []
    forward = LazyDecoder.forward

    def spy(self: LazyDecoder, x: Tensor, t: Tensor, text: object, hole: HoleTokens, *others: object) -> Tensor:
        calls.append((x, hole))
        return forward(self, x, t, text, hole, *others)  # type: ignore[arg-type]

    with patch.object(LazyDecoder, "forward", spy):
        yield calls


# Every token


def test_visible_tokens_are_the_canvas_with_the_seeds_first_noise(dense_model: LazyDiffusion) -> None:
    context, sampling = canvas(dense_model), Sampling("euler", steps=3, guidance=2.0)
    with spied() as calls:
        sample_dense(dense_model, context, PROMPTS, SEEDS, sampling)
    assert len(calls) == 3
    visible = ~torch.isin(torch.arange(context.hole.total), context.hole.index)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    noise = torch.stack([torch.randn(context.canvas.shape[1:], generator=generator) for generator in generators])
    for i, (x, hole) in enumerate(calls):
        assert hole.count == hole.total and torch.equal(x[:2], x[2:])  # both branches of guidance
        sigma = 1 - i / 3
        z = (1 - sigma) * context.canvas + sigma * noise
        # The network's input is scaled by one number for each channel.
        scale = x[:2][:, visible].norm(dim=(0, 1)) / z[:, visible].norm(dim=(0, 1))
        torch.testing.assert_close(x[:2][:, visible], scale * z[:, visible], rtol=1e-3, atol=1e-5)


def test_a_batch_of_canvases_equals_its_rows(dense_model: LazyDiffusion) -> None:
    """Holes of different sizes; tolerance: another batch size sums matrix products in another order."""
    scenes = [scene(number) for number in range(3)]
    context = encode_everything(dense_model, torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]))
    assert context.hole.padded and context.tokens.shape[1] == context.hole.total
    together = sample_dense(dense_model, context, [s[2] for s in scenes], [0, 1, 2])
    for i, (image, mask, caption) in enumerate(scenes):
        one = encode_everything(dense_model, image, mask)
        alone = sample_dense(dense_model, one, [caption], [i])
        torch.testing.assert_close(together[i, : one.hole.count], alone[0], rtol=1e-4, atol=1e-4)


def test_what_the_hole_covers_is_not_seen(dense_model: LazyDiffusion) -> None:
    image, mask, caption = scene(2)
    other = torch.where(mask > 0, torch.rand_like(image), image)
    contexts = [encode_everything(dense_model, i, mask) for i in (image, other)]
    first, second = (sample_dense(dense_model, context, [caption], [0]) for context in contexts)
    inside = contexts[0].hole
    whole = mask.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).amin(4).flatten(1).bool()
    assert inside.gather(whole[..., None].float()).any()  # some token is hidden as a whole
    assert torch.equal(first, second)


# A KV cache


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_anchors_at_every_step_change_nothing(dense_model: LazyDiffusion, sampler: str, guidance: float) -> None:
    context, sampling = canvas(dense_model), Sampling(sampler, steps=4, guidance=guidance)
    cache = KVCache(KVSettings(anchors=99, reuse=True))
    with spied() as calls:
        lazy = sample_dense(dense_model, context, PROMPTS, SEEDS, sampling, cache=cache)
    assert {hole.count for _, hole in calls} == {context.hole.total} and cache.count == len(calls)
    assert torch.equal(lazy, sample_dense(dense_model, context, PROMPTS, SEEDS, sampling))


@pytest.mark.parametrize("ring", [0, 1])
def test_a_hole_that_is_everything_is_computed_as_ever(dense_model: LazyDiffusion, ring: int) -> None:
    context = encode_everything(dense_model, scene(1)[0], torch.ones(1, 1, 96, 96))
    lazy = sample_dense(dense_model, context, PROMPTS, SEEDS, cache=KVCache(KVSettings(anchors=1, ring=ring)))
    assert torch.equal(lazy, sample_dense(dense_model, context, PROMPTS, SEEDS))


@pytest.mark.parametrize("ring", [0, 1, 2])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_keys_of_the_same_step_are_exact(dense_model: LazyDiffusion, ring: int, guidance: float) -> None:
    """Tolerance: attention sums its keys in another order, and smaller matrix products are summed otherwise."""
    context = canvas(dense_model)
    z, session = noisy(context), KVCache(KVSettings(anchors=1, ring=ring)).session([0.5, 0.25, 0.0])
    lazy = dense_denoiser(dense_model, context, PROMPTS, SEEDS, guidance, session=session)
    expected = dense_denoiser(dense_model, context, PROMPTS, SEEDS, guidance)(z, 0.5)
    with spied() as calls:
        recorded, replayed = lazy(z, 0.5), lazy(z, 0.5)
    assert (session.recorded, session.replayed) == (1, 1)
    assert [hole.count for _, hole in calls] == [context.hole.total, dilate(context.hole, ring).count]
    assert torch.equal(recorded, expected)
    assert (replayed - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("ring", [0, 1])
@pytest.mark.parametrize("batch", [False, True])
def test_replay_is_a_full_pass_with_the_kept_keys(dense_model: LazyDiffusion, ring: int, batch: bool) -> None:
    """The slow way: everything is computed, and before each attention the keys and values of all tokens but the hole's
    and its ring's are overwritten by those of the earlier step. In a batch of canvases, by the union of their holes."""
    scenes = [scene(number) for number in ((1, 2) if batch else (1,))]
    context = encode_everything(dense_model, torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]))
    first, second = noisy(context), noisy(context)
    session = KVCache(KVSettings(anchors=1, ring=ring)).session([0.9, 0.3, 0.0])
    lazy = dense_denoiser(dense_model, context, PROMPTS, SEEDS, 2.0, session=session)
    lazy(first, 0.9)
    replayed = lazy(second, 0.3)
    assert session.replayed == 1

    stale = ~torch.isin(torch.arange(context.hole.total), dilate(context.hole, ring).index[0])
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        kept.append((k, v))
        return k, v

    def overwrite(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        old_k, old_v = kept.pop(0)
        k, v = k.clone(), v.clone()
        k[..., stale, :], v[..., stale, :] = old_k[..., stale, :], old_v[..., stale, :]
        return k, v

    slow, forward = dense_denoiser(dense_model, context, PROMPTS, SEEDS, 2.0), LazyDecoder.forward
    for z, sigma, hook in ((first, 0.9, keep), (second, 0.3, overwrite)):
        with patch.object(LazyDecoder, "forward", lambda *args, last=hook: forward(*args[:6], last)):
            expected = slow(z, sigma)
    assert not kept
    valid = context.hole.tile(2 // len(scenes)).valid
    # As above: other orders of sums.
    assert (replayed - expected)[valid].abs().max() <= 1e-5 * expected[valid].abs().max()
    assert (replayed - slow(second, 0.3))[valid].abs().max() > 1e-3 * expected.abs().max()


def test_other_prompts_and_seeds_use_the_anchors_that_are_there(dense_model: LazyDiffusion) -> None:
    context, cache = canvas(dense_model), KVCache(KVSettings(reuse=True))
    sample_dense(dense_model, context, PROMPTS, SEEDS, cache=cache)
    kept = cache.bytes
    for prompts, seeds in ((["a boat"], [8]), (["a boat", "background", "a tree"], [8, 9, 10])):
        with spied() as calls:
            sample_dense(dense_model, context, prompts, seeds, cache=cache)
        assert {hole.count for _, hole in calls} == {dilate(context.hole, 1).count}
    assert cache.bytes == kept


def test_a_stopped_sampling_is_not_taken_for_a_whole_one(dense_model: LazyDiffusion) -> None:
    context, cache = canvas(dense_model), KVCache(KVSettings(anchors=3, reuse=True))
    forward, calls = LazyDecoder.forward, [0]

    def stop(*args: object) -> Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return forward(*args)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt), patch.object(LazyDecoder, "forward", stop):
        sample_dense(dense_model, context, PROMPTS, SEEDS, cache=cache)
    assert cache.count == 1 and not cache.complete
    sample_dense(dense_model, context, PROMPTS, SEEDS, cache=cache)
    assert cache.count == 3 and cache.complete


@pytest.mark.parametrize("precision", ["model", "fp8"])
def test_kept_in_eight_bits_it_is_nearly_the_same(dense_model: LazyDiffusion, precision: str) -> None:
    """Eight bits change keys and values by a sixteenth at most, and what comes out of softmax and sums by less."""
    context = canvas(dense_model)
    settings = KVSettings(anchors=1, precision=precision, place="host")  # type: ignore[arg-type]
    z, session = noisy(context), KVCache(settings).session([0.5, 0.25, 0.0])
    lazy = dense_denoiser(dense_model, context, PROMPTS, SEEDS, 2.0, session=session)
    expected = lazy(z, 0.5)
    error = (lazy(z, 0.5) - expected).norm() / expected.norm()
    assert error <= (1e-5 if precision == "model" else 1 / 16)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_kept_is_known_by_the_samplers_schedule(dense_model: LazyDiffusion, sampler: str) -> None:
    sampling = Sampling(sampler, steps=5, guidance=1.0)
    cache, (_, sigmas) = KVCache(KVSettings(anchors=99, reuse=True)), make_sampler(sampling)
    sample_dense(dense_model, canvas(dense_model), PROMPTS, SEEDS, sampling, cache)
    assert list(cache.kept) == [tuple(sigmas)] and list(cache.kept[tuple(sigmas)]) == sigmas[:-1]


# Recordings


@pytest.mark.parametrize("batch", [False, True])
def test_recorded_keys_are_those_of_a_full_pass_that_hides_the_hole(dense_model: LazyDiffusion, batch: bool) -> None:
    """The slow way: everything is computed, and no query sees a key of the hole. Tolerance: as above."""
    scenes = [scene(number) for number in ((1, 2) if batch else (1,))]
    context = encode_everything(dense_model, torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]))
    session = RecordingCache(KVSettings(levels=1)).session([0.5, 0.0])
    dense_denoiser(dense_model, context, PROMPTS, SEEDS, 2.0, session)(noisy(context), 0.5)
    visible, kept = visible_tokens(context.hole).index[0], ~torch.isin(
        torch.arange(context.hole.total), dilate(context.hole, 1).index[0]
    )  # fmt: skip
    seen: list[tuple[Tensor, Tensor]] = []

    def hide(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((k[..., kept, :], v[..., kept, :]))
        return k[..., visible, :], v[..., visible, :]

    forward, noise = LazyDecoder.forward, recorded_noise(context.canvas.shape)
    with patch.object(LazyDecoder, "forward", lambda *args: forward(*args[:6], hide)):
        dense_denoiser(dense_model, context, PROMPTS, SEEDS, 2.0, visible_noise=noise)(noisy(context), 0.5)
    conditional, unconditional = session.cache.entries.values()
    for i, (k, v) in enumerate(seen):
        for whole, part in ((k, "keys"), (v, "values")):
            found = torch.cat([getattr(entry, part)[i].data for entry in (conditional, unconditional)])
            assert (found - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_no_step_is_dense_and_what_ran_before_does_not_matter(dense_model: LazyDiffusion, guidance: float) -> None:
    context, sampling = canvas(dense_model), Sampling("euler", steps=4, guidance=guidance)
    expected = sample_dense(dense_model, context, PROMPTS, SEEDS, sampling, RecordingCache(KVSettings(levels=2)))
    cache, visible = RecordingCache(KVSettings(levels=2)), context.hole.total - context.hole.count
    some = dilate(context.hole, 1).count
    for prompts, seeds, recorded in ((PROMPTS, [8, 9], 2), (PROMPTS, SEEDS, 0), (PROMPTS[::-1], SEEDS, 2)):
        with spied() as calls:
            tokens = sample_dense(dense_model, context, prompts, seeds, sampling, cache)
        counts = [hole.count for _, hole in calls]
        assert counts == [visible] * recorded + [some] * 4
        if seeds == SEEDS and prompts == PROMPTS:
            assert torch.equal(tokens, expected)
    assert cache.count == 2 * (1 if guidance == 1 else 2)


# Pictures


@pytest.mark.parametrize("crop", [False, True])
def test_pixels_outside_the_mask_stay(crop: bool, vocabulary: bytes) -> None:
    model, (image, mask, caption) = tiny_model("flow", vocabulary, "small-crop" if crop else "small-image"), scene(1)
    results = [paint_baseline(model, image, mask, caption, seed, crop) for seed in (1, 1, 2)]
    outside = (mask == 0).expand_as(image)
    assert all(torch.equal(result[outside], image[outside]) for result in results)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_nothing_outside_the_square_reaches_the_model(crop_model: LazyDiffusion) -> None:
    """The blindness of RegenerateCrop: its answer does not change with the rest of the canvas, which it gives back."""
    image, other, mask = torch.rand(1, 3, 96, 96), torch.rand(1, 3, 96, 96), torch.zeros(1, 1, 96, 96)
    mask[..., 30:60, 30:60] = 1
    inside = mask.expand_as(image) > 0
    other[inside] = image[inside]
    first, second = (regenerate(crop_model, i, mask, ["a red tree"], [1], crop=True) for i in (image, other))
    assert torch.equal(first[inside], second[inside])
    assert torch.equal(first[~inside], image[~inside]) and torch.equal(second[~inside], other[~inside])


def test_a_batch_of_crops_equals_its_rows(crop_model: LazyDiffusion) -> None:
    """Holes of different sizes and places; tolerance: another batch size sums matrix products in another order."""
    scenes = [scene(number) for number in range(3)]
    images, masks = torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes])
    together = regenerate(crop_model, images, masks, [s[2] for s in scenes], [0, 1, 2], crop=True)
    for i, (image, mask, caption) in enumerate(scenes):
        alone = regenerate(crop_model, image, mask, [caption], [i], crop=True)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)
