"""Attention masks and prompt difference masks as nodes, on stock models and on ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lazydiff.scenes.backgrounds import random_background
from lazydiff.scenes.scene import Placed, Scene, Thing, render, silhouette

from .in_process import Pack, scene
from .stand_in_clip import SETTINGS, Graph
from .tiny_models import latent, prompt, tiny

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


# Prompt differences


@pytest.fixture
def counted(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of a model."""
    import comfy.model_base

    rows: list[int] = []
    apply = comfy.model_base.BaseModel.apply_model

    def count(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(len(x))
        return apply(self, x, *args, **kwargs)

    monkeypatch.setattr(comfy.model_base.BaseModel, "apply_model", count)
    return rows


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_recorded_steps_are_reused_and_make_the_same_mask(pack: Pack, counted: list[int], name: str) -> None:
    graph = Graph(pack, name)
    empty = {"samples": torch.zeros_like(graph.vae.encode(graph.image))}
    (model,) = pack.call("RecordLatents", graph.model)
    result = graph.sample(model, empty, denoise=1.0)
    assert torch.equal(result, graph.sample(graph.model, empty, denoise=1.0))
    counted.clear()
    reused = graph.difference(result, seed=99, model=model)  # the seed is the recorded one's
    few = sum(counted)
    counted.clear()
    computed = graph.difference(result)
    assert sum(counted) == 2 * few
    assert all(torch.equal(a, b) for a, b in zip(reused, computed, strict=True))
    assert 0 < reused[0].mean() < 0.9


def test_difference_is_that_of_two_whole_samplings(pack: Pack) -> None:
    """Against both pictures made to the end, with their steps written down."""
    graph = Graph(pack, "sd15")
    canvas = graph.vae.encode(graph.image)
    target = graph.clip.conditioning("a red dog")
    steps = [latents_of(graph, canvas, positive) for positive in (graph.positive, target)]
    by_hand, heat = compared(pack, *steps)
    mask, seen = graph.difference(canvas, denoise=0.6)
    assert torch.equal(mask[0], by_hand) and seen.shape == (1, 256, 320, 3)


@torch.inference_mode()
def latents_of(graph: Graph, canvas: Tensor, positive: Any, sampler: str = "euler") -> list[Tensor]:
    """After each of the four steps of a whole sampling."""
    import comfy.sample
    import comfy.samplers

    sigmas = comfy.samplers.KSampler(graph.model, 4, "cpu", sampler, "normal", 0.6).sigmas
    latents: list[Tensor] = []
    comfy.sample.sample_custom(
        graph.model, comfy.sample.prepare_noise(canvas, 1), 3.0, comfy.samplers.sampler_object(sampler),
        sigmas, positive, graph.negative, canvas, None, lambda i, x0, x, n: latents.append(x.clone()),
    )  # fmt: skip
    return latents


def compared(pack: Pack, original: list[Tensor], edited: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mask [256, 320] and heat map [1, 64, 80] of the first two steps."""
    part = pack.part("lazydiff.difference_masks")
    expected = part.DifferenceMap()
    for pair in list(zip(edited, original, strict=True))[1:3]:
        expected.add(*pair)
    size = (64, 80)  # twice the latent's: at least 64 cells
    resized = pack.part("lazydiff.attention_masks").resize(expected.heat()[None], size)
    return part.difference_mask(resized[0]).repeat_interleave(4, 0).repeat_interleave(4, 1), expected.heat()


def test_prompts_without_a_difference_make_an_empty_mask_and_a_note(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, said = Graph(pack, "sd15"), []
    monkeypatch.setattr(pack.part("nodes.difference_mask"), "show", said.append)
    mask, heat = graph.difference(torch.zeros(1, 4, 32, 40), target=graph.positive)
    assert mask.shape == (1, 256, 320) and not mask.any() and not heat.any()
    assert len(said) == 1 and "The two prompts make the same picture" in said[0]


# The stabiliser

TEXTS = {"source_text": "a red cat", "target_text": "a red dog"}
CROSS = ["sd15", "sdxl", "pixart-sigma", "small"]


class Small(Graph):
    """This pack's own model in a graph, with its own text encoder."""

    def __init__(self, pack: Pack):
        self.call, self.name = pack.call, "small"
        self.model, self.clip, self.vae = small(pack)
        self.positive, self.target = (self.encode(text) for text in TEXTS.values())
        self.negative = self.encode("a very long prompt of what there is to stay away from")

    def encode(self, text: str) -> Any:
        return self.call("CLIPTextEncode", self.clip, text)[0]


def crossing(pack: Pack, name: str) -> tuple[Graph, Tensor, Any]:
    """A graph, a canvas, and the conditioning of the target text. The negative prompt is longer where that matters: a
    batch of both has the positive's words twice."""
    if name == "small":
        graph = Small(pack)
        return graph, graph.vae.encode(scene(9)[0].movedim(1, -1)), graph.target
    graph = Graph(pack, name)
    if name == "sd15":
        graph.negative = prompt(name, 154, 2)
    return graph, graph.vae.encode(graph.image), graph.clip.conditioning(TEXTS["target_text"])


class WrittenOut:
    """In the place of a model's attentions to its text: shares token by token, in fp64."""

    def __init__(self, graph: Graph):
        texts = ([token[0] for token in next(iter(graph.clip.tokenize(text).values()))[0]] for text in TEXTS.values())
        same = next(i for i, (one, other) in enumerate(zip(*texts, strict=True)) if one != other)
        self.shared = range(1 if graph.name in ("sd15", "sdxl") else 0, same)  # not the start token
        self.kept: list[Tensor] = []
        self.rows: list[int] = []
        self.length, self.to_target = 0, False

    def apply_model(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        self.rows = rows_of_positive(args[5], len(args[0]))
        return executor(*args, **kwargs)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) / q.shape[-1] ** 0.5
        shares = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
        copies = range(k.shape[2] // self.length) if self.length else range(1)
        of_source = self.kept.pop(0) if self.to_target and self.rows else shares[self.rows]
        if self.rows and not self.to_target:
            self.kept.append(of_source.clone())
        for row, kept in zip(self.rows, of_source, strict=True):
            for place in [token + copy * self.length for copy in copies for token in self.shared]:
                shares[row, ..., place] = kept[..., place]
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=0.1)
        return torch.einsum("bhqk,bhkd->bqhd", shares, v.double()).flatten(2).to(v)

    def unet(self, module: Any, x: Tensor, context: Tensor, value: Any = None, **options: Any) -> Tensor:
        q, k, v = (heads(y, module.heads) for y in (module.to_q(x), module.to_k(context), module.to_v(context)))
        self.length = 77
        return module.to_out(self.attend(q, k, v))

    def pixart(self, module: Any, x: Tensor, text: Tensor, *unused: Any) -> Tensor:
        k, v = module.kv_linear(text.reshape(len(x), -1, text.shape[-1])).chunk(2, -1)
        q, k, v = (heads(y, module.num_heads) for y in (module.q_linear(x), k, v))
        return module.proj(self.attend(q, k, v))

    def own(self, module: Any, x: Tensor, keys_values: Any, mask: Tensor, *unused: Any) -> Tensor:
        return module.proj(self.attend(module.queries(x), *keys_values, mask))


def rows_of_positive(options: dict[str, Any], rows: int) -> list[int]:
    size = rows // len(options["cond_or_uncond"])
    return [row for row in range(rows) if options["cond_or_uncond"][row // size] == 0]


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(2, (count, -1)).transpose(1, 2)


@pytest.mark.parametrize("name", CROSS)
def test_stabilised_difference_equals_attention_written_out(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from comfy.patcher_extension import WrappersMP

    graph, canvas, target = crossing(pack, name)
    before = latents_of(graph, canvas, target)
    found = graph.difference(canvas, target=target, denoise=0.6, clip=graph.clip, **TEXTS)
    plain = graph.difference(canvas, target=target, denoise=0.6)
    assert all(torch.equal(a, b) for a, b in zip(latents_of(graph, canvas, target), before, strict=True))

    reference, model = WrittenOut(graph), graph.model
    graph.model = model.clone()
    graph.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "written out", reference.apply_model)
    kind = {"pixart-sigma": "pixart", "small": "own"}.get(name, "unet")
    named = model.model.diffusion_model.named_modules()
    modules = [module for at, module in named if at.endswith("attn2" if kind == "unet" else "cross_attn")]
    for module in modules:
        monkeypatch.setattr(module, "forward", partial(getattr(reference, kind), module))
    source = latents_of(graph, canvas, graph.positive)
    assert len(reference.kept) == 4 * len(modules) > 0 and len(reference.shared) >= 2
    reference.to_target = True
    _, heat = compared(pack, source, latents_of(graph, canvas, target))
    size = found[0].shape[1:]
    heat = pack.part("lazydiff.attention_masks").resize(heat[None], tuple(size))
    seen, unsteady = (each[1].amax(-1) / 0.8 for each in (found, plain))  # the hottest cells are the brightest
    assert (seen - heat).abs().max() < 2e-3  # fp32 there, in another order; stretched to 0…1
    assert (seen - unsteady).abs().max() > 0.02


def test_prompts_that_are_equal_stay_equal_when_stabilised(pack: Pack) -> None:
    graph = Graph(pack, "pixart-sigma")
    texts = {"source_text": "a red cat", "target_text": "a red cat"}
    mask, heat = graph.difference(
        torch.zeros(1, 4, 32, 40), target=graph.positive, sampler="dpmpp_2m", clip=graph.clip, **texts
    )
    assert not mask.any() and not heat.any()


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen-image"])
def test_models_without_cross_attention_are_refused_in_words(pack: Pack, name: str) -> None:
    graph = Graph(pack, name)
    with pytest.raises(ValueError, match="mixes words and picture in one attention.*needs a model with cross"):
        graph.difference(graph.vae.encode(graph.image), clip=graph.clip, **TEXTS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip": None}, "needs clip, source_text and target_text: give all of them, or none"),
        ({"target_text": " "}, "needs clip, source_text and target_text"),
        ({"source_text": "a red cat on a mat"}, "source_text “a red cat on a mat” is not what the source was made of"),
        ({"target": [0, 1]}, "the target is of 2 prompts"),
    ],
)
def test_texts_that_do_not_belong_are_refused_in_words(pack: Pack, changed: dict[str, Any], message: str) -> None:
    graph = Graph(pack, "pixart-sigma")
    with pytest.raises(ValueError, match=message):
        graph.difference(torch.zeros(1, 4, 32, 40), **{"clip": graph.clip, **TEXTS, **changed})


def test_interrupted_stabiliser_leaves_the_model_as_it_was(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, part = Graph(pack, "pixart-sigma"), pack.part("lazydiff.stabiliser")
    canvas = graph.vae.encode(graph.image)
    before = graph.sample(graph.model, {"samples": canvas})

    def stop(*unused: Any) -> Tensor:
        raise InterruptedError

    monkeypatch.setattr(part.Stabiliser, "target", stop)
    with pytest.raises(InterruptedError):
        graph.difference(canvas, clip=graph.clip, **TEXTS)
    assert torch.equal(graph.sample(graph.model, {"samples": canvas}), before)


def test_a_later_sampling_does_not_pass_for_an_earlier_one(pack: Pack) -> None:
    """The recorder knows a sampling by its result, and remembers the last ones alone."""
    graph = Graph(pack, "sd15")
    (model,) = pack.call("RecordLatents", graph.model)
    recorder = pack.part("nodes.host.trajectory").recorder_of(model)
    results = [graph.sample(model, {"samples": latent(graph.model, seed=i)}) for i in range(3)]
    assert recorder.find(results[0]) is None
    assert [recorder.find(each).result.equal(each) for each in results[1:]] == [True, True]
    masked = {"samples": latent(graph.model), "noise_mask": torch.ones(1, 1, 20, 20)}
    assert recorder.find(graph.sample(model, masked)) is None  # where the mask was zero it shows no steps


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_fisedit_pipeline_recomputes_what_the_words_touch(pack: Pack, name: str) -> None:
    """A picture, a changed prompt, its mask, and a lazy sampling of the mask alone."""
    graph = Graph(pack, name)
    (model,) = pack.call("RecordLatents", graph.model)
    picture = graph.sample(model, {"samples": torch.zeros_like(graph.vae.encode(graph.image))}, denoise=1.0)
    mask, _ = graph.difference(picture, model=model)
    mask = torch.cat((torch.zeros_like(mask[:, :64]), mask[:, 64:]), 1)  # random weights may drift apart all over
    (pixels,) = pack.call("VAEDecode", graph.vae, {"samples": picture})
    context, canvas = pack.call("LazyContextEncode", model, graph.vae, pixels, mask, 0, 0)
    target = graph.clip.conditioning("a red dog")
    (out,) = pack.call("LazySample", model, context, target, graph.negative, 1, 4, 3.0, "euler", "normal", 1.0, 1)
    shown = (canvas["noise_mask"] == 0).expand_as(out["samples"])
    assert shown.any() and torch.equal(out["samples"][shown], canvas["samples"][shown])


def test_interrupted_search_leaves_the_model_as_it_was(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as mm
    import latent_preview

    graph = Graph(pack, "pixart-sigma")
    canvas = {"samples": graph.vae.encode(graph.image)}
    before = graph.sample(graph.model, canvas)

    def prepare(*unused: Any) -> Any:
        """Where the host looks whether it is interrupted, after a step."""

        def stop(*of_step: Any) -> None:
            raise mm.InterruptProcessingException

        return stop

    with monkeypatch.context() as patched:
        patched.setattr(latent_preview, "prepare_callback", prepare)
        with pytest.raises(mm.InterruptProcessingException):
            graph.mask()
        with pytest.raises(mm.InterruptProcessingException):
            graph.difference(canvas["samples"], denoise=0.6)
    assert torch.equal(graph.sample(graph.model, canvas), before)


def test_prompts_of_other_shapes_are_compared_too(pack: Pack) -> None:
    """Of a text of another length, as T5's are."""
    graph = Graph(pack, "pixart-sigma")
    mask, _ = graph.difference(torch.zeros(1, 4, 32, 40), source=prompt("pixart-sigma", 4), target=prompt("flux", 9))
    assert 0 < mask.mean() < 1
