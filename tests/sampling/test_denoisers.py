"""Models that compute every token, and how anchors let them compute fewer: against full passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from samples import scene
from torch import Tensor

from lazydiff.cache.kv_cache import KVCache, KVSettings, dilate
from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import Sampling
from lazydiff.model.context import LazyContext
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit, encode, sample
from lazydiff.sampling.denoiser import denoiser, noise_levels
from lazydiff.sampling.samplers import SAMPLERS

PROMPTS, SEEDS = ["a red tree", "another one"], [3, 4]


def canvas(model: LazyDiffusion, number: int = 1) -> LazyContext:
    return encode(model, *scene(number)[:2])


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
        sample(dense_model, context, PROMPTS, SEEDS, sampling)
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
    context = encode(dense_model, torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]))
    assert context.hole.padded and context.tokens.shape[1] == context.hole.total
    together = sample(dense_model, context, [s[2] for s in scenes], [0, 1, 2])
    for i, (image, mask, caption) in enumerate(scenes):
        one = encode(dense_model, image, mask)
        alone = sample(dense_model, one, [caption], [i])
        torch.testing.assert_close(together[i, : one.hole.count], alone[0], rtol=1e-4, atol=1e-4)


def test_what_the_hole_covers_is_not_seen(dense_model: LazyDiffusion) -> None:
    image, mask, caption = scene(2)
    other = torch.where(mask > 0, torch.rand_like(image), image)
    first, second = (sample(dense_model, encode(dense_model, i, mask), [caption], [0]) for i in (image, other))
    inside = encode(dense_model, image, mask).hole
    whole = mask.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).amin(4).flatten(1).bool()
    assert inside.gather(whole[..., None].float()).any()  # some token is hidden as a whole
    assert torch.equal(first, second)


# KVCache


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_anchors_at_every_step_change_nothing(dense_model: LazyDiffusion, sampler: str, guidance: float) -> None:
    context, sampling = canvas(dense_model), Sampling(sampler, steps=4, guidance=guidance)
    anchors = KVCache(KVSettings(anchors=99))
    with spied() as calls:
        lazy = sample(dense_model, context, PROMPTS, SEEDS, sampling, anchors=anchors)
    assert {hole.count for _, hole in calls} == {context.hole.total} and anchors.count == len(calls)
    assert torch.equal(lazy, sample(dense_model, context, PROMPTS, SEEDS, sampling))


@pytest.mark.parametrize("ring", [0, 1])
def test_a_hole_that_is_everything_is_computed_as_ever(dense_model: LazyDiffusion, ring: int) -> None:
    context = encode(dense_model, scene(1)[0], torch.ones(1, 1, 96, 96))
    lazy = sample(dense_model, context, PROMPTS, SEEDS, anchors=KVCache(KVSettings(anchors=1, ring=ring)))
    assert torch.equal(lazy, sample(dense_model, context, PROMPTS, SEEDS))


@pytest.mark.parametrize("ring", [0, 1, 2])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_keys_of_the_same_step_are_exact(dense_model: LazyDiffusion, ring: int, guidance: float) -> None:
    """Tolerance: attention sums its keys in another order, and smaller matrix products are summed otherwise."""
    context = canvas(dense_model)
    z, run = noisy(context), KVCache(KVSettings(anchors=1, ring=ring)).run([0.5, 0.0])
    lazy = denoiser(dense_model, context, PROMPTS, SEEDS, guidance, run=run)
    expected = denoiser(dense_model, context, PROMPTS, SEEDS, guidance)(z, 0.5, 0.5)
    with spied() as calls:
        recorded, replayed = lazy(z, 0.5, 0.5), lazy(z, 0.5, 0.5)
    assert (run.recorded, run.replayed) == (1, 1)
    assert [hole.count for _, hole in calls] == [context.hole.total, dilate(context.hole, ring).count]
    assert torch.equal(recorded, expected)
    assert (replayed - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("ring", [0, 1])
@pytest.mark.parametrize("batch", [False, True])
def test_replay_is_a_full_pass_with_the_kept_keys(dense_model: LazyDiffusion, ring: int, batch: bool) -> None:
    """The slow way: everything is computed, and before each attention the keys and values of all tokens but the hole's
    and its ring's are overwritten by those of the earlier step. In a batch of canvases, by the union of their holes."""
    scenes = [scene(number) for number in ((1, 2) if batch else (1,))]
    context = encode(dense_model, torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]))
    first, second = noisy(context), noisy(context)
    run = KVCache(KVSettings(anchors=1, ring=ring)).run([0.9, 0.3, 0.0])
    lazy = denoiser(dense_model, context, PROMPTS, SEEDS, 2.0, run=run)
    lazy(first, 0.1, 0.9)
    replayed = lazy(second, 0.7, 0.3)
    assert run.replayed == 1

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

    slow, forward = denoiser(dense_model, context, PROMPTS, SEEDS, 2.0), LazyDecoder.forward
    for z, alpha, sigma, memory in ((first, 0.1, 0.9, keep), (second, 0.7, 0.3, overwrite)):
        with patch.object(LazyDecoder, "forward", lambda *args, last=memory: forward(*args[:6], last)):
            expected = slow(z, alpha, sigma)
    assert not kept
    valid = context.hole.tile(2 // len(scenes)).valid
    # As above: other orders of sums.
    assert (replayed - expected)[valid].abs().max() <= 1e-5 * expected[valid].abs().max()
    assert (replayed - slow(second, 0.7, 0.3))[valid].abs().max() > 1e-3 * expected.abs().max()


def test_other_prompts_and_seeds_use_the_anchors_that_are_there(dense_model: LazyDiffusion) -> None:
    context, anchors = canvas(dense_model), KVCache(KVSettings())
    sample(dense_model, context, PROMPTS, SEEDS, anchors=anchors)
    kept = anchors.bytes
    for prompts, seeds in ((["a boat"], [8]), (["a boat", "background", "a tree"], [8, 9, 10])):
        with spied() as calls:
            sample(dense_model, context, prompts, seeds, anchors=anchors)
        assert {hole.count for _, hole in calls} == {dilate(context.hole, 1).count}
    assert anchors.bytes == kept


def test_a_stopped_sampling_is_not_taken_for_a_whole_one(dense_model: LazyDiffusion) -> None:
    context, anchors = canvas(dense_model), KVCache(KVSettings(anchors=3))

    def stop(done: int, total: int, x0: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(dense_model, context, PROMPTS, SEEDS, callback=stop, anchors=anchors)
    assert anchors.count == 1 and not anchors.complete
    sample(dense_model, context, PROMPTS, SEEDS, anchors=anchors)
    assert anchors.count == 3 and anchors.complete


@pytest.mark.parametrize("precision", ["model", "fp8"])
def test_kept_in_eight_bits_it_is_nearly_the_same(dense_model: LazyDiffusion, precision: str) -> None:
    """Eight bits change keys and values by a sixteenth at most, and what comes out of softmax and sums by less."""
    context = canvas(dense_model)
    settings = KVSettings(anchors=1, precision=precision, place="host")  # type: ignore[arg-type]
    z, run = noisy(context), KVCache(settings).run([0.5, 0.0])
    lazy = denoiser(dense_model, context, PROMPTS, SEEDS, 2.0, run=run)
    expected = lazy(z, 0.5, 0.5)
    error = (lazy(z, 0.5, 0.5) - expected).norm() / expected.norm()
    assert error <= (1e-5 if precision == "model" else 1 / 16)


def test_lazy_models_need_no_anchors(model: LazyDiffusion) -> None:
    with pytest.raises(ValueError, match="anchors are for models that compute every token"):
        sample(model, canvas(model), PROMPTS, SEEDS, anchors=KVCache(KVSettings()))


def test_anchors_of_another_context_are_refused(dense_model: LazyDiffusion) -> None:
    anchors = KVCache(KVSettings(anchors=1))
    sample(dense_model, canvas(dense_model, 1), PROMPTS, SEEDS, anchors=anchors)
    with pytest.raises(ValueError, match="left on another context"):
        sample(dense_model, canvas(dense_model, 2), PROMPTS, SEEDS, anchors=anchors)


# Whole edits


@pytest.mark.parametrize("height, width", [(96, 96), (192, 192), (100, 50)])
def test_pixels_outside_the_mask_stay(dense_model: LazyDiffusion, height: int, width: int) -> None:
    image, mask = torch.rand(1, 3, height, width), torch.zeros(1, 1, height, width)
    mask[..., 10:50, 5:40] = 1
    results = edit(dense_model, image, mask, "a red tree", [1, 2])
    outside = (mask == 0).expand_as(results)
    assert torch.equal(results[outside], image.expand_as(results)[outside])
    assert not torch.equal(results[0], results[1])
    # Another batch size sums matrix products in another order.
    assert torch.allclose(results[1:], edit(dense_model, image, mask, "a red tree", [2]), atol=1e-4)


def test_a_step_of_a_model_that_computes_everything_costs_everything(
    model: LazyDiffusion, dense_model: LazyDiffusion
) -> None:
    assert canvas(dense_model).cost == 1 > canvas(model).cost


# Noise levels


@pytest.mark.parametrize("strength", [None, 0.6, 1.0])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_noise_levels_are_those_that_a_sampling_visits(
    dense_model: LazyDiffusion, sampler: str, strength: float | None
) -> None:
    context, sampling = canvas(dense_model), replace(dense_model.config.sampling, sampler=sampler, steps=5)
    anchors = KVCache(KVSettings(anchors=99))
    sketch = None if strength is None else torch.rand(1, 3, 96, 96)
    sample(dense_model, context, PROMPTS, SEEDS, sampling, sketch=sketch, strength=strength or 1.0, anchors=anchors)
    levels = noise_levels(SAMPLERS[sampler], 5, strength)
    assert list(anchors.kept) == [tuple(levels)]
    assert list(anchors.kept[tuple(levels)]) == levels[:-1] == sorted(levels[:-1], reverse=True)
    assert levels[-1] == 0 and 0 < len(levels) - 1 <= 5
