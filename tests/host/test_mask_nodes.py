"""Attention masks as nodes, on stock models and on ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lazydiff.scenes.backgrounds import random_background
from lazydiff.scenes.scene import Placed, Scene, Thing, render, silhouette

from .in_process import Pack, scene
from .stand_in_clip import SETTINGS, Graph
from .tiny_models import tiny

pytestmark = pytest.mark.host


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart-sigma", "flux", "sd3", "qwen-image"])
def test_attention_mask_of_every_kind_of_model(pack: Pack, name: str) -> None:
    """A mask and a heat map of the picture's size, the same again; and the sampler is none the wiser."""
    graph = Graph(pack, name)
    canvas = {"samples": graph.vae.encode(graph.image)}
    before = graph.sample(graph.model, canvas)
    mask, heat = graph.mask()
    assert mask.shape == (1, 256, 320) and heat.shape == (1, 256, 320, 3)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert heat.min() >= 0 and heat.max() <= 1 and (heat - graph.image).abs().max() > 0.1
    assert torch.equal(graph.mask()[0], mask) and not torch.equal(graph.mask(seed=9)[1], heat)
    assert torch.equal(graph.sample(graph.model, canvas), before)


def test_pointed_words_make_their_own_masks(pack: Pack) -> None:
    graph = Graph(pack, "sd15")
    heats = [graph.mask(words=words)[1] for words in ("cat", "Mat", "red, cat")]
    assert all(not torch.equal(heats[0], other) for other in heats[1:])
    assert torch.equal(graph.mask(words="cat", mask_threshold=0.0)[1], heats[0])


def test_references_are_for_the_user_to_choose(pack: Pack) -> None:
    graph = Graph(pack, "sd15")
    heats = {name: graph.mask(reference=name)[1] for name in ("automatic", "start", "sink", "difference")}
    assert torch.equal(heats["automatic"], heats["start"])
    assert not torch.equal(graph.mask(reference="difference", cfg=1.0)[1], heats["difference"])


def test_evidence_tells_the_named_object_from_others(pack: Pack) -> None:
    """Which the small model's attention does not."""
    things = {
        "a striped orange mug": Thing("mug", "orange", "striped", "large"),
        "a blue heart": Thing("heart", "blue", "plain", "large"),
    }
    placed = [Placed(thing, x, 24) for thing, x in zip(things.values(), (8, 56), strict=True)]
    picture = render(Scene(random_background(np.random.default_rng(4)), "left", tuple(placed)))
    image = torch.from_numpy(picture.copy())[None] / 255
    model, clip, vae = small(pack)
    given = {**SETTINGS, "mask_threshold": 0.4, "seed": 0, "seeds": 3, "steps": 10, "strength": 0.5, "cfg": 1.0}
    bodies = [torch.from_numpy(silhouette(each)) for each in placed]
    for i, name in enumerate(things):
        mask, _ = pack.call("AttentionMask", model, clip, vae, image, name, **given, evidence=True)
        named, other = (float(mask[0][body].mean()) for body in (bodies[i], bodies[1 - i]))
        assert named > 0.5 and other < 0.2, (name, named, other)


def test_each_image_of_a_batch_has_its_mask(pack: Pack) -> None:
    graph = Graph(pack, "sd15")
    images = torch.rand(2, 256, 320, 3)
    masks, heats = graph.mask(image=images, seeds=1)
    (alone, _) = graph.mask(image=images[1:], seeds=1)
    assert masks.shape == (2, 256, 320) and heats.shape == images.shape
    assert torch.equal(masks[1:], alone)


def test_image_of_any_size(pack: Pack) -> None:
    graph = Graph(pack, "flux")
    mask, heat = graph.mask(image=torch.rand(1, 203, 301, 4), seeds=1)
    assert mask.shape == (1, 203, 301) and heat.shape == (1, 203, 301, 3)


def test_published_steps_run(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50 steps at strength 0.5 the last 25, with three seeds at once and with their own noise each."""
    graph, calls = Graph(pack, "pixart-sigma"), []
    import comfy.sample

    def sample(model: Any, noise: Tensor, cfg: float, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> None:
        calls.append((noise, sigmas))
        raise InterruptedError

    monkeypatch.setattr(comfy.sample, "sample_custom", sample)
    with pytest.raises(InterruptedError):
        graph.mask(seeds=3, steps=50, strength=0.5)
    ((noise, sigmas),) = calls
    whole = comfy.samplers.KSampler(graph.model, 50, "cpu", "lms", "normal", 1.0).sigmas
    assert torch.equal(sigmas, whole[25:]) and len(sigmas) == 26
    assert torch.equal(noise[1:2], comfy.sample.prepare_noise(noise[1:2], 4)) and len(noise) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " "}, "the prompt is empty: write what the mask should cover"),
        ({"words": "dog"}, "there is no word “dog” in the prompt: choose among a, red, cat, on, a, mat"),
        ({"image": torch.full((1, 64, 64, 3), float("nan"))}, "not numbers"),
    ],
)
def test_attention_mask_refuses_in_words(pack: Pack, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(pack, "sd15").mask(**changes)


def test_start_token_that_is_not_there_is_refused_in_words(pack: Pack) -> None:
    with pytest.raises(ValueError, match="no start token: choose another reference"):
        Graph(pack, "flux").mask(reference="start")


@pytest.mark.parametrize("node", ["mask", "instant"])
def test_model_without_known_attention_is_refused_in_words(pack: Pack, node: str) -> None:
    graph = Graph(pack, "sd15")
    with pytest.raises(ValueError, match="how WAN21 attends to its prompt is not known"):
        getattr(graph, node)(model=tiny("wan"))


# Instant masks


@pytest.mark.parametrize("name", ["sd15", "flux", "pixart-sigma"])
def test_instant_mask_changes_what_it_covers_alone(pack: Pack, name: str) -> None:
    """Against the same sampling with the masks written down: found after each step, used in the next."""
    graph = Graph(pack, name)
    canvas = {"samples": graph.vae.encode(graph.image)}
    model, positive = graph.instant(mask_threshold=0.4)
    result = graph.sample(model, canvas, positive=positive)
    search, masks = model.model_options["denoise_mask_function"].__self__, []
    narrow = search.narrow

    def watch(*args: Any, **kwargs: Any) -> Tensor:
        masks.append(narrow(*args, **kwargs))
        return masks[-1]

    model.set_model_denoise_mask_function(watch)
    assert torch.equal(graph.sample(model, canvas, positive=positive), result)
    assert len(masks) == 4 and masks[0].min() == 1
    assert all(0 < mask.mean() < 1 for mask in masks[1:])
    plain = graph.model.clone()
    plain.set_model_denoise_mask_function(lambda *unused, **more: masks.pop(0))
    last = masks[-1].expand_as(result).bool()
    whole = {**canvas, "noise_mask": torch.ones(1, 1, 32, 40)}
    assert torch.equal(graph.sample(plain, whole, positive=positive), result)
    # Outside, the last step takes the noise away again, which is much larger than the picture.
    assert torch.allclose(result[~last], canvas["samples"][~last], atol=1e-4)
    assert (result - canvas["samples"])[last].abs().mean() > 0.01


def test_instant_mask_keeps_to_the_latents_own_mask_and_to_another_packs_function(pack: Pack) -> None:
    graph = Graph(pack, "sd15")
    own = torch.zeros(1, 1, 32, 40)
    own[..., :20] = 1
    canvas = {"samples": graph.vae.encode(graph.image), "noise_mask": own}
    model, positive = graph.instant(mask_threshold=0.0)
    result = graph.sample(model, canvas, positive=positive)
    shown = (own == 0).expand_as(result)
    assert torch.allclose(result[shown], canvas["samples"][shown], atol=1e-5)
    other = graph.model.clone()
    other.set_model_denoise_mask_function(lambda sigma, mask, extra_options: mask * 0)
    nothing, positive = graph.instant(model=other)
    assert torch.allclose(graph.sample(nothing, canvas, positive=positive), canvas["samples"], atol=1e-5)


@pytest.mark.parametrize("order", ["context first", "mask first"])
def test_instant_mask_with_a_kv_context_leaves_the_visible_part_alone(pack: Pack, order: str) -> None:
    graph = Graph(pack, "flux")
    hole = torch.zeros(1, 256, 320)
    hole[:, 75:150, 130:210] = 1
    context, canvas = graph.call("LazyContextEncode", graph.model, graph.vae, graph.image, hole, 0, 0, anchors=2)
    if order == "context first":
        (model,) = graph.call("LazyContextApply", graph.model, context)
        model, positive = graph.instant(model=model)
    else:
        model, positive = graph.instant()
        (model,) = graph.call("LazyContextApply", model, context)
    for given in (canvas, {"samples": canvas["samples"]}):
        result = graph.sample(model, given, denoise=1.0, positive=positive)
        shown = (canvas["noise_mask"] == 0).expand_as(result)
        assert torch.equal(result[shown], canvas["samples"][shown])


def small(pack: Pack) -> tuple[Any, Any, Any]:
    return pack.call("LazyCheckpointLoader", "lazydiffusion-small.safetensors")


def test_from_words_to_an_edit_with_the_small_model(pack: Pack) -> None:
    """Attention mask, context, sampler and blend in one graph: outside the found mask every pixel is the picture's."""
    model, clip, vae = small(pack)
    image = scene(9)[0].movedim(1, -1)  # red boats
    given = {**SETTINGS, "mask_threshold": 0.5, "seed": 0, "seeds": 2, "steps": 10, "strength": 0.5, "cfg": 1.0}
    mask, _ = pack.call("AttentionMask", model, clip, vae, image, "a boat", **given)
    assert 0.02 < mask.mean() < 0.7
    context, canvas = pack.call("LazyContextEncode", model, vae, image, mask, 0, 0)
    positive, negative = (pack.call("CLIPTextEncode", clip, text)[0] for text in ("a green tree", ""))
    args = model, context, positive, negative, 1, 3, 1.0, "euler", "simple", 1.0, 1
    (samples,) = pack.call("LazySample", *args)
    shown = (canvas["noise_mask"] == 0).expand_as(samples["samples"])
    assert torch.equal(samples["samples"][shown], canvas["samples"][shown])
    (pixels,) = pack.call("VAEDecode", vae, samples)
    (blended,) = pack.call("PoissonBlend", image, pixels, mask, "source", 0)
    assert torch.equal(blended[mask == 0], image[mask == 0]) and not torch.equal(blended, image)


def test_instant_mask_with_a_learned_context_narrows_nothing_and_says_so(
    pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    model, clip, vae = small(pack)
    image, mask, _ = scene(9)
    context, canvas = pack.call("LazyContextEncode", model, vae, image.movedim(1, -1), mask[:, 0], 0, 0)
    (lazy,) = pack.call("LazyContextApply", model, context)
    instant, positive = pack.call("InstantMask", lazy, clip, "a boat", **SETTINGS)
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    args = 1, 3, 1.0, "euler", "simple", positive, negative, canvas, 1.0
    plain, narrowed = (pack.call("KSampler", each, *args)[0]["samples"] for each in (lazy, instant))
    assert torch.equal(narrowed, plain)
    shown = (canvas["noise_mask"] == 0).expand_as(plain)
    assert torch.equal(plain[shown], canvas["samples"][shown])
    assert [record.message for record in caplog.records if "no mask was found" in record.message]


def test_model_with_a_learned_context_says_what_to_connect(pack: Pack) -> None:
    """Such a model never looks at the visible part."""
    model, clip, vae = small(pack)
    image, mask, _ = scene(9)
    context, _ = pack.call("LazyContextEncode", model, vae, image.movedim(1, -1), mask[:, 0], 0, 0)
    (lazy,) = pack.call("LazyContextApply", model, context)
    given = {**SETTINGS, "seed": 0, "seeds": 1, "steps": 4, "strength": 0.5, "cfg": 1.0}
    with pytest.raises(ValueError, match="connect the MODEL as it is before Lazy Context Apply"):
        pack.call("AttentionMask", lazy, clip, vae, image.movedim(1, -1), "a boat", **given)
