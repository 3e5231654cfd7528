"""The model inside the host's samplers: exact outside the hole, equal to the library inside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lazydiff.evaluation.laboratory import SMALL

from .in_process import Pack, scene

pytestmark = pytest.mark.host

# Sums in another order, over tens of steps: the library's and the host's results differ by about 1e-6 of the range.
CLOSE = 1e-4


class Graph:
    """What most graphs begin with: a model, the small one if not given, a canvas with a hole, prompts of different
    length."""

    def __init__(self, pack: Pack, path: Path | None = None):
        checkpoint = pack.part("lazydiff.model.checkpoint")
        path = path or SMALL
        self.model, self.clip, self.vae = pack.call("LazyCheckpointLoader", path.name)
        picture, mask, self.caption = scene(3)
        self.image, self.mask = picture.movedim(1, -1), mask[:, 0]
        self.positive, self.negative = (pack.call("CLIPTextEncode", self.clip, t)[0] for t in (self.caption, ""))
        self.context, self.latent = pack.call("LazyContextEncode", self.model, self.vae, self.image, self.mask, 0, 0)
        self.library = checkpoint.load_checkpoint(path)


@pytest.fixture(scope="module")
def graph(pack: Pack) -> Graph:
    return Graph(pack)


def visible(latent: torch.Tensor, graph: Graph) -> torch.Tensor:
    shown = graph.latent["noise_mask"] == 0
    return latent[shown.expand_as(latent[:1]).expand_as(latent)]


def test_parts_equal_the_librarys(pack: Pack, graph: Graph) -> None:
    text, _ = graph.library.text([graph.caption])
    assert torch.allclose(graph.positive[0][0], text, atol=CLOSE)
    context = pack.part("lazydiff.pipeline.encode").encode(graph.library, *scene(3)[:2])
    assert context.model == graph.context.model and context.network == graph.context.network
    assert torch.allclose(graph.context.tokens, context.tokens, atol=CLOSE)
    assert torch.allclose(graph.context.canvas, context.canvas, atol=CLOSE)


def pictures(pack: Pack, graph: Graph, seeds: list[int], **settings: Any) -> torch.Tensor:
    """What the library makes of the canvas, one for each seed."""
    encode, sample, decode = (pack.part(f"lazydiff.pipeline.{name}") for name in ("encode", "sample", "decode"))
    context = encode.encode(graph.library, *scene(3)[:2])
    prompts = [graph.caption] * len(seeds)
    tokens = sample.sample(graph.library, context, prompts, seeds, sample.SampleSettings(**settings))
    return decode.decode(graph.library, context, tokens)


SAME_SAMPLERS = {"ancestral (as trained)": "ancestral", "euler": "euler"}  # here: in the library


@pytest.mark.parametrize("sampler", SAME_SAMPLERS)
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_variations_equal_the_librarys(pack: Pack, graph: Graph, sampler: str, cfg: float) -> None:
    assert_variations_equal_the_librarys(pack, graph, sampler, cfg)


def assert_variations_equal_the_librarys(pack: Pack, graph: Graph, sampler: str, cfg: float) -> None:
    """The nodes make what the library makes from the same seeds, and leave the rest as it was."""
    sampling = replace(graph.library.config.sampling, sampler=SAME_SAMPLERS[sampler], steps=10, guidance=cfg)
    expected = pictures(pack, graph, [7, 8], sampling=sampling)
    args = graph.model, graph.context, graph.positive, graph.negative, 7, 10, cfg, sampler, "simple", 1.0, 2
    (latent,) = pack.call("LazySample", *args)
    (pixels,) = pack.call("VAEDecode", graph.vae, latent)
    assert torch.allclose(pixels.movedim(-1, 1), expected, atol=CLOSE)
    canvas = graph.latent["samples"].expand_as(latent["samples"])
    assert torch.equal(visible(latent["samples"], graph), visible(canvas, graph))


def test_sketch_equals_the_librarys(pack: Pack, graph: Graph) -> None:
    """denoise 0.5 of 5 steps is the lower half of 10: the library's strength 0.5."""
    sketch = torch.rand(1, 3, 96, 96)
    sampling = replace(graph.library.config.sampling, sampler="euler", steps=10, guidance=2.0)
    expected = pictures(pack, graph, [7], sampling=sampling, sketch=sketch, strength=0.5)
    args = graph.model, graph.context, graph.positive, graph.negative, 7, 5, 2.0, "euler", "simple", 0.5, 1
    (latent,) = pack.call("LazySample", *args, sketch=sketch.movedim(1, -1))
    (pixels,) = pack.call("VAEDecode", graph.vae, latent)
    assert torch.allclose(pixels.movedim(-1, 1), expected, atol=CLOSE)


SAMPLERS = [
    "euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "dpmpp_3m_sde", "ddim",
    "uni_pc", "lcm", "res_multistep", "lms", "deis",
]  # fmt: skip


@pytest.mark.parametrize("route", ["nodes", "attached", "stock"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_visible_latent_is_bit_identical(pack: Pack, graph: Graph, sampler: str, route: str) -> None:
    """Whatever the sampler and by whichever nodes; and the hole is not as it was."""
    if route == "nodes":
        args = graph.model, graph.context, graph.positive, graph.negative, 1, 3, 1.5, sampler, "normal", 0.9, 2
        (out,) = pack.call("LazySample", *args)
    else:
        latent, model = graph.latent, graph.model
        if route == "attached":
            (model,) = pack.call("LazyContextApply", model, graph.context)
        else:
            (latent,) = pack.call("VAEEncode", graph.vae, graph.image)
            (latent,) = pack.call("SetLatentNoiseMask", latent, graph.mask)
        args = model, 1, 3, 1.5, sampler, "normal", graph.positive, graph.negative, latent, 0.9
        (out,) = pack.call("KSampler", *args)
    samples = out["samples"]
    assert torch.isfinite(samples).all()
    canvas = graph.latent["samples"].expand_as(samples)
    assert torch.equal(visible(samples, graph), visible(canvas, graph))
    assert not torch.equal(samples, canvas)


def test_stock_route_equals_the_attached_one_on_whole_cells(pack: Pack, graph: Graph) -> None:
    """With a mask of whole tokens a stock graph knows as much as our encoder does: same context, same latent."""
    mask = torch.zeros(1, 96, 96)
    mask[:, 32:64, 24:56] = 1
    context, latent = pack.call("LazyContextEncode", graph.model, graph.vae, graph.image, mask, 0, 0)
    (model,) = pack.call("LazyContextApply", graph.model, context)
    (stock,) = pack.call("UNETLoader", SMALL.name, "default")
    results = [
        pack.call("KSampler", each, 1, 4, 1.5, "euler", "simple", graph.positive, graph.negative, latent, 1.0)[0]
        for each in (model, graph.model, stock)
    ]
    for result in results[1:]:
        assert torch.allclose(result["samples"], results[0]["samples"], atol=1e-3)


def test_custom_sampling_with_any_guider(pack: Pack, graph: Graph) -> None:
    (model,) = pack.call("LazyContextApply", graph.model, graph.context)
    (noise,), (sampler,) = pack.call("RandomNoise", 1), pack.call("KSamplerSelect", "euler")
    (sigmas,) = pack.call("BasicScheduler", model, "simple", 3, 1.0)
    (basic,) = pack.call("BasicGuider", model, graph.positive)
    (guided,) = pack.call("CFGGuider", model, graph.positive, graph.negative, 2.0)
    for guider in (basic, guided):
        out = pack.call("SamplerCustomAdvanced", noise, guider, sampler, sigmas, graph.latent)[0]
        assert torch.equal(visible(out["samples"], graph), visible(graph.latent["samples"], graph))


def test_two_advanced_samplers_in_a_row(pack: Pack, graph: Graph) -> None:
    (model,) = pack.call("LazyContextApply", graph.model, graph.context)
    latent = graph.latent
    for noise, first, last, rest in (("enable", 0, 2, "enable"), ("disable", 2, 4, "disable")):
        args = model, noise, 1, 4, 1.5, "euler", "simple", graph.positive, graph.negative, latent, first, last, rest
        (latent,) = pack.call("KSamplerAdvanced", *args)
        assert torch.equal(visible(latent["samples"], graph), visible(graph.latent["samples"], graph))
    at_once = model, 1, 4, 1.5, "euler", "simple", graph.positive, graph.negative, graph.latent, 1.0
    assert torch.allclose(latent["samples"], pack.call("KSampler", *at_once)[0]["samples"], atol=1e-4)


def test_regional_prompts(pack: Pack, graph: Graph) -> None:
    left = torch.zeros(1, 96, 96)
    left[..., :48] = 1
    regions = [pack.call("ConditioningSetMask", graph.positive, m, "default", 1.0)[0] for m in (left, 1 - left)]
    (both,) = pack.call("ConditioningCombine", *regions)
    args = graph.model, graph.context, both, graph.negative, 1, 3, 2.0, "euler", "simple", 1.0, 1
    (out,) = pack.call("LazySample", *args)
    plain = pack.call("LazySample", *args[:2], graph.positive, *args[3:])[0]
    # The same prompt in both halves is the prompt everywhere.
    assert torch.allclose(out["samples"], plain["samples"], atol=CLOSE)


def test_area_conditioning_is_refused_in_words(pack: Pack, graph: Graph) -> None:
    (area,) = pack.call("ConditioningSetArea", graph.positive, 48, 48, 0, 0, 1.0)
    with pytest.raises(ValueError, match="Set Mask"):
        pack.call("LazySample", graph.model, graph.context, area, graph.negative, 1, 2, 2.0, "euler", "simple", 1.0, 1)


def test_rectangular_latents_of_stock_nodes(pack: Pack, graph: Graph) -> None:
    """Without Lazy Context Encode nothing is fitted."""
    latent, mask = torch.randn(1, 96, 8, 15), torch.zeros(1, 64, 120)
    mask[:, 16:40, 32:88] = 1
    (masked,) = pack.call("SetLatentNoiseMask", {"samples": latent}, mask)
    args = graph.model, 1, 2, 1.5, "euler", "simple", graph.positive, graph.negative, masked, 1.0
    changed = (pack.call("KSampler", *args)[0]["samples"] != latent).any(1)[0]
    assert changed[2:5, 4:11].all() and changed.sum() == 3 * 7


def test_canvases_of_a_batch_each_with_its_hole(pack: Pack, graph: Graph) -> None:
    """A ragged batch equals its canvases one by one."""
    scenes = [scene(number) for number in (3, 4)]
    image = torch.cat([s[0] for s in scenes]).movedim(1, -1)
    mask = torch.cat([s[1] for s in scenes])[:, 0]
    settings = graph.positive, graph.negative, 5, 3, 1.5, "euler", "simple", 1.0, 1
    context, _ = pack.call("LazyContextEncode", graph.model, graph.vae, image, mask, 0, 0)
    together = pack.call("LazySample", graph.model, context, *settings)[0]["samples"]
    for row in range(2):
        rows = slice(row, row + 1)
        context, _ = pack.call("LazyContextEncode", graph.model, graph.vae, image[rows], mask[rows], 0, 0)
        args = *settings[:2], 5 + row, *settings[3:]
        alone = pack.call("LazySample", graph.model, context, *args)[0]["samples"]
        assert torch.allclose(together[rows], alone, atol=CLOSE)


def test_conditional_and_unconditional_prompts_are_one_batch(pack: Pack, graph: Graph) -> None:
    rows: list[int] = []
    decoder = graph.model.model.diffusion_model
    hook = decoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        args = graph.model, graph.context, graph.positive, graph.negative, 1, 2, 3.0, "euler", "simple", 1.0, 2
        pack.call("LazySample", *args)
    finally:
        hook.remove()
    assert rows == [4, 4]  # two variations, twice each, in one call per step


@pytest.mark.parametrize("attached", [True, False])
def test_a_stopped_sampling_leaves_nothing_behind(pack: Pack, graph: Graph, attached: bool) -> None:
    import gc

    import comfy.model_management as mm

    model, calls = graph.model, []
    if attached:
        (model,) = pack.call("LazyContextApply", model, graph.context)

    def stop(decoder: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        calls.append(len(args))
        if len(calls) == 2:
            assert model.model.run is not None
            raise mm.InterruptProcessingException

    hook = model.model.diffusion_model.register_forward_pre_hook(stop)
    try:
        with pytest.raises(mm.InterruptProcessingException):
            pack.call(
                "KSampler", model, 1, 4, 1.5, "euler", "simple", graph.positive, graph.negative, graph.latent, 1.0
            )
    finally:
        hook.remove()
    gc.collect()
    assert len(calls) == 2 and model.model.run is None


def test_only_hole_tokens_reach_the_decoder(pack: Pack, graph: Graph) -> None:
    counts: list[int] = []
    hook = graph.model.model.diffusion_model.register_forward_pre_hook(lambda m, args: counts.append(args[0].shape[1]))
    try:
        conditions = graph.positive, graph.negative
        pack.call("KSampler", graph.model, 1, 2, 1.0, "euler", "simple", *conditions, graph.latent, 1.0)
    finally:
        hook.remove()
    assert set(counts) == {graph.context.hole.count}


def test_memory_demand_scales_with_the_hole(graph: Graph) -> None:
    model = graph.model.model
    full = model.memory_required([2, 96, 12, 12])
    model.share = graph.context.hole.share
    try:
        assert model.memory_required([2, 96, 12, 12]) == pytest.approx(full * graph.context.hole.share)
    finally:
        model.share = 1.0


# Weights


def run(pack: Pack, graph: Graph, model: Any) -> torch.Tensor:
    args = model, graph.context, graph.positive, graph.negative, 1, 4, 1.5, "euler", "simple", 1.0, 1
    return pack.call("LazySample", *args)[0]["samples"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-2), ("bfloat16", 0.3), ("float32", 0)])
def test_weights_of_other_precision(pack: Pack, graph: Graph, dtype: str, tolerance: float) -> None:
    """Stored in half precision and computed in fp32. The tolerances are a few times what each dtype rounds off."""
    import comfy.sd
    import folder_paths

    path = folder_paths.get_full_path("diffusion_models", SMALL.name)
    model = comfy.sd.load_diffusion_model(path, model_options={"dtype": getattr(torch, dtype)})
    assert model.model.diffusion_model.dtype is getattr(torch, dtype)
    difference = (run(pack, graph, model) - run(pack, graph, graph.model)).abs().max()
    assert difference <= tolerance


def test_weights_that_stay_behind_give_the_same(pack: Pack, graph: Graph) -> None:
    """As in a forced partial load: every layer casts its weights when they are used."""
    (model,) = pack.call("UNETLoader", SMALL.name, "default")
    expected = run(pack, graph, model)
    layers = [layer for layer in model.model.diffusion_model.modules() if hasattr(layer, "comfy_cast_weights")]
    for layer in layers:
        layer.comfy_cast_weights = True
    assert torch.equal(run(pack, graph, model), expected)
    assert layers and all(layer.comfy_cast_weights for layer in layers), "the host has loaded the model anew"


def test_patch_on_the_decoder_applies_and_is_undone(pack: Pack, graph: Graph) -> None:
    before = run(pack, graph, graph.model)
    patched = graph.model.clone()
    weight = "diffusion_model.blocks.2.attn.proj.weight"
    applied = patched.add_patches({weight: ("diff", (torch.full((192, 192), 0.05),))}, 1.0)
    assert list(applied) == [weight]
    assert not torch.allclose(run(pack, graph, patched), before)
    assert torch.equal(run(pack, graph, graph.model), before)


def test_one_context_many_uses(pack: Pack, graph: Graph) -> None:
    """A context is read by clones, batches and other prompts, and stays as it was."""
    import copy

    assert copy.deepcopy(graph.context) is graph.context
    before = [t.clone() for t in (graph.context.tokens, graph.context.canvas, graph.context.hole.index)]
    first = run(pack, graph, graph.model)
    run(pack, graph, graph.model.clone())
    args = graph.model, graph.context, graph.negative, graph.positive, 9, 2, 4.0, "lcm", "karras", 1.0, 3
    pack.call("LazySample", *args)
    assert torch.equal(run(pack, graph, graph.model), first)
    after = graph.context.tokens, graph.context.canvas, graph.context.hole.index
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_preview_is_the_picture_in_small(graph: Graph) -> None:
    """The linear preview equals the mean colour of each patch."""
    import torch.nn.functional as F

    latent, form = graph.latent["samples"], graph.model.model.latent_format
    factors, bias = torch.tensor(form.latent_rgb_factors), torch.tensor(form.latent_rgb_factors_bias)
    preview = torch.einsum("bchw,cr->brhw", latent, factors) + bias[None, :, None, None]
    decoded = graph.vae.first_stage_model.decode(latent)
    assert torch.allclose(preview, F.avg_pool2d(decoded, 8), atol=1e-4)
