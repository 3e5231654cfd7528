"""Prompt difference masks as nodes, on stock models and on ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from .in_process import Pack, interrupted, scene
from .stand_in_clip import Graph
from .tiny_models import latent, prompt

pytestmark = pytest.mark.host


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
    part = pack.part("lazydiff.auto_mask.difference_mask")
    expected = part.DifferenceMap()
    for pair in list(zip(edited, original, strict=True))[1:3]:
        expected.add(*pair)
    size = (64, 80)  # twice the latent's: at least 64 cells
    resized = pack.part("lazydiff.auto_mask.maps").resize(expected.heat()[None], size)
    return part.difference_mask(resized[0]).repeat_interleave(4, 0).repeat_interleave(4, 1), expected.heat()


def test_prompts_without_a_difference_make_an_empty_mask_and_a_note(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, said = Graph(pack, "sd15"), []
    monkeypatch.setattr(pack.part("nodes.host.prompt_difference"), "show", said.append)
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
        self.model, self.clip, self.vae = pack.call("LazyCheckpointLoader", "lazydiffusion-small.safetensors")
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
        shares = (scores if mask is None else scores + mask).softmax(-1)
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
    heat = pack.part("lazydiff.auto_mask.maps").resize(heat[None], tuple(size))
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
    graph, part = Graph(pack, "pixart-sigma"), pack.part("lazydiff.auto_mask.prompt_to_prompt")
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
    from comfy.model_management import InterruptProcessingException

    graph = Graph(pack, "pixart-sigma")
    canvas = {"samples": graph.vae.encode(graph.image)}
    before = graph.sample(graph.model, canvas)

    with interrupted(monkeypatch):
        with pytest.raises(InterruptProcessingException):
            graph.mask()
        with pytest.raises(InterruptProcessingException):
            graph.difference(canvas["samples"], denoise=0.6)
    assert torch.equal(graph.sample(graph.model, canvas), before)


def test_prompts_of_other_shapes_are_compared_too(pack: Pack) -> None:
    """Of a text of another length, as T5's are."""
    graph = Graph(pack, "pixart-sigma")
    mask, _ = graph.difference(torch.zeros(1, 4, 32, 40), source=prompt("pixart-sigma", 4), target=prompt("flux", 9))
    assert 0 < mask.mean() < 1
