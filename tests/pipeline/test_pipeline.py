"""What the product promises of an edit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from samples import scene
from torch import Tensor

from lazydiff.model.config import Sampling
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.decode import decode
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.encode import encode
from lazydiff.pipeline.sample import SampleSettings, sample

BOX = (slice(None), slice(None), slice(30, 58), slice(20, 60))


def box_mask(height: int = 96, width: int = 96) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[BOX] = 1
    return mask


@contextmanager
def counted(network: type[torch.nn.Module]) -> Iterator[list[int]]:
    """How often a network's forward ran."""
    calls: list[int] = []
    forward = network.forward

    def count(self: torch.nn.Module, *args: object, **others: object) -> object:
        calls.append(1)
        return forward(self, *args, **others)

    with patch.object(network, "forward", count):
        yield calls


@pytest.mark.parametrize("blend", ["poisson", "mixed", "paste"])
@pytest.mark.parametrize("sampler", ["ancestral", "euler", "iddpm", "dpmpp", "ddim", "unipc"])
def test_pixels_outside_the_mask_stay(model: LazyDiffusion, sampler: str, blend: str) -> None:
    image, mask = torch.rand(1, 3, 96, 96), box_mask()
    settings = SampleSettings(replace(model.config.sampling, sampler=sampler))
    result = edit(model, image, mask, "a red tree", settings=settings, blend=blend)  # type: ignore[arg-type]
    outside = (mask == 0).expand_as(image)
    assert torch.equal(result[outside], image[outside])
    assert not torch.equal(result[~outside], image[~outside])
    assert result.min() >= 0 and result.max() <= 1


def test_twenty_chained_edits_leave_the_rest_alone(model: LazyDiffusion) -> None:
    canvas = original = torch.rand(1, 3, 96, 96)
    touched = torch.zeros(1, 1, 96, 96)
    for number in range(20):
        _, mask, caption = scene(number)
        mask[..., :16, :] = 0  # so that something is never touched
        canvas = edit(model, canvas, mask, caption, [number])
        touched = torch.maximum(touched, mask)
    outside = (touched == 0).expand_as(original)
    assert outside.any() and torch.equal(canvas[outside], original[outside])


def test_empty_mask_returns_the_input_without_running(model: LazyDiffusion) -> None:
    image = torch.rand(1, 3, 96, 96)
    with counted(ContextEncoder) as encoded, counted(LazyDecoder) as decoded:
        result = edit(model, image, torch.zeros(1, 1, 96, 96), "a red tree", [1, 2])
    assert torch.equal(result, image.expand(2, -1, -1, -1))
    assert not encoded and not decoded


def test_full_mask(model: LazyDiffusion) -> None:
    result = edit(model, torch.rand(1, 3, 96, 96), torch.ones(1, 1, 96, 96), "blue sky over green grass")
    assert result.shape == (1, 3, 96, 96) and torch.isfinite(result).all()


def test_same_seed_same_pixels(model: LazyDiffusion) -> None:
    image, mask, caption = scene(1)
    first = edit(model, image, mask, caption, [5])
    assert torch.equal(first, edit(model, image, mask, caption, [5]))
    assert not torch.equal(first, edit(model, image, mask, caption, [6]))


def test_variations_equal_single_edits(model: LazyDiffusion) -> None:
    """A batch of seeds is only faster. Tolerance: another batch size sums matrix products in another order."""
    image, mask, caption = scene(2)
    together = edit(model, image, mask, caption, [1, 2, 3])
    for seed, result in zip((1, 2, 3), together, strict=True):
        assert torch.allclose(result, edit(model, image, mask, caption, [seed])[0], atol=1e-4)


def test_one_context_feeds_many_samplers(model: LazyDiffusion) -> None:
    image, mask, _ = scene(3)
    with counted(ContextEncoder) as encoded:
        context = encode(model, image, mask)
        before = [tensor.clone() for tensor in (context.tokens, context.canvas, context.hole.index)]
        results = [
            sample(model, context, [prompt], [seed], SampleSettings(Sampling(sampler, steps=3, guidance=2.0)))
            for prompt, seed, sampler in (("a tree", 1, "ancestral"), ("a boat", 1, "dpmpp"), ("a boat", 2, "ddim"))
        ]
    assert len(encoded) == 1
    after = (context.tokens, context.canvas, context.hole.index)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_holes_of_different_size_in_one_batch(model: LazyDiffusion) -> None:
    """A ragged batch equals its rows one by one, up to the order of sums."""
    scenes = [scene(number) for number in range(4)]
    context = encode(model, torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]))
    assert context.hole.padded
    tokens = sample(model, context, [s[2] for s in scenes], [0, 1, 2, 3])
    together = decode(model, context, tokens)
    for number, (image, mask, caption) in enumerate(scenes):
        one = encode(model, image, mask)
        alone = decode(model, one, sample(model, one, [caption], [number]))
        assert torch.allclose(together[number], alone[0], atol=1e-4)


def test_context_of_another_model_is_refused(model: LazyDiffusion, vocabulary: bytes) -> None:
    other = LazyDiffusion.self_contained(model.config, vocabulary)
    other.initialise(1)
    context = encode(model, *scene(1)[:2])
    with pytest.raises(ValueError, match="another model"):
        sample(other, context, ["a tree"], [0])


def test_sketch_starts_from_its_colours(model: LazyDiffusion) -> None:
    """With little strength the result stays near the sketch, with more it does not."""
    image, mask = torch.full((1, 3, 96, 96), 0.5), box_mask()
    sketch = torch.rand(1, 3, 12, 12).repeat_interleave(8, 2).repeat_interleave(8, 3)
    sampling = Sampling("euler", steps=20, guidance=1.0)
    inside = mask.expand_as(image) > 0

    def distance(strength: float) -> float:
        settings = SampleSettings(sampling, sketch=sketch, strength=strength)
        result = edit(model, image, mask, "a tree", [0], settings, blend="paste")
        return float((result - model_copy)[inside].abs().mean())

    # What the latent space of this model can show of the sketch.
    model_copy = ((model.latent.decode(model.latent.encode(sketch * 2 - 1)) + 1) / 2).clamp(0, 1)
    assert distance(0.05) < 0.05 < distance(0.9)


def test_hidden_pixels_do_not_reach_the_context(model: LazyDiffusion) -> None:
    image, mask = torch.rand(1, 3, 96, 96), box_mask()
    changed = torch.where(mask > 0, torch.rand(1, 3, 96, 96), image)
    assert torch.equal(encode(model, image, mask).tokens, encode(model, changed, mask).tokens)


def test_a_batch_of_masks_equals_its_masks_one_by_one(model: LazyDiffusion) -> None:
    """Each mask with its own prompt and seed, at each of a sampling's steps. Steps amplify what differs between sums in
    another order; hence 1e-5."""
    image, mask = torch.rand(1, 3, 96, 96).expand(3, -1, -1, -1), torch.zeros(3, 1, 96, 96)
    mask[0, :, 8:40, 8:24] = mask[1, :, 50:90, 10:90] = mask[2, :, 16:24, 64:72] = 1
    prompts, seeds = ["a red tree", "a boat on a lake", "a"], [3, 4, 5]
    context = encode(model, image, mask)
    together = sample(model, context, prompts, seeds)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        one = encode(model, image[:1], mask[i : i + 1])
        alone = sample(model, one, [prompt], [seed])
        assert (together[i, : one.hole.count] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize(("height", "width"), [(96, 96), (192, 192), (100, 50), (33, 200)])
def test_any_canvas_size(model: LazyDiffusion, height: int, width: int) -> None:
    image, mask = torch.rand(1, 3, height, width), torch.zeros(1, 1, height, width)
    mask[..., : height // 2, width // 4 : width // 2] = 1
    result = edit(model, image, mask, "a tree")
    outside = (mask == 0).expand_as(image)
    assert torch.equal(result[outside], image[outside])


def good() -> dict[str, object]:
    return {"image": torch.rand(1, 3, 96, 96), "mask": box_mask(), "prompt": "a red tree"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": box_mask(64, 96)}, "mask is 96×64 and the image 96×96"),
        ({"image": torch.rand(1, 1, 96, 96)}, "must be one RGB picture"),
        ({"image": torch.rand(1, 3, 0, 0), "mask": torch.zeros(1, 1, 0, 0)}, "at least one token"),
        ({"image": torch.rand(1, 3, 4, 4), "mask": torch.ones(1, 1, 4, 4)}, "at least one token, 8×8"),
        ({"mask": box_mask() * 2}, "mask has values from 0 to 2"),
        ({"mask": box_mask() * float("nan")}, "mask has values that are not numbers"),
        ({"image": torch.full((1, 3, 96, 96), float("inf"))}, "image has values that are not numbers"),
        ({"sampling": Sampling("ancestral", steps=0)}, "0 steps"),
        ({"sampling": Sampling("ancestral", steps=5000)}, "5000 steps"),
        ({"sampling": Sampling("ancestral", steps=2, guidance=1e9)}, "guidance"),
        ({"sampling": Sampling("magic", steps=2)}, "no sampler called magic"),
        ({"prompt": "a red tree and " * 100}, "shorten"),
        ({"sketch": torch.rand(1, 3, 32, 32)}, "the sketch is 32×32"),
        ({"blend": "glue"}, "no blend called glue"),
        ({"strength": 0.0, "sketch": torch.rand(1, 3, 96, 96)}, "strength"),
    ],
)
def test_bad_input_is_told_in_words(model: LazyDiffusion, changes: dict[str, object], message: str) -> None:
    given = {**good(), **changes}
    settings = {name: given.pop(name) for name in SampleSettings._fields if name in given}
    with pytest.raises(ValueError, match=message):
        edit(model, settings=SampleSettings(**settings), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "masks"),
    [((1, 3, 95, 96), (1, 1, 95, 96)), ((2, 3, 96, 96), (1, 1, 96, 96)), ((1, 3, 96, 96), (1, 1, 96, 88))],
)
def test_encode_refuses_sizes_that_do_not_go_together(
    model: LazyDiffusion, images: tuple[int, ...], masks: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"images? of \d+×\d+ and \d masks? of .* multiples of 8"):
        encode(model, torch.rand(images), torch.ones(masks))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 96, 96), (1, 1, 96, 96)])
def test_sample_refuses_sketches_of_another_size(model: LazyDiffusion, shape: tuple[int, ...]) -> None:
    context = encode(model, torch.rand(1, 3, 96, 96), box_mask())
    with pytest.raises(ValueError, match="the sketch is .* give .1 or 2, 3, 96, 96"):
        sample(model, context, ["a red tree"] * 2, [1, 2], SampleSettings(sketch=torch.rand(shape)))


def test_cancel_ends_at_once(model: LazyDiffusion) -> None:
    def stop(done: int, total: int, x0: Tensor) -> None:
        raise KeyboardInterrupt

    with counted(LazyDecoder) as decoded, pytest.raises(KeyboardInterrupt):
        edit(model, *scene(1), settings=SampleSettings(callback=stop))
    assert len(decoded) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_a_model_that_computes_every_token_edits_nothing(dense_model: LazyDiffusion, number: int) -> None:
    with pytest.raises(ValueError, match="computes every token: it is a baseline"):
        edit(dense_model, *scene(number))
