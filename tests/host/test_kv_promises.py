"""What samplings with a KV context promise, whatever else is in the graph; on the tiniest of Flux unless it matters."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from .in_process import Pack
from .tiny_models import Edit, prompt, tiny
from .tiny_patches import CONTROLNETS, controlnet

pytestmark = pytest.mark.host

CLOSE = 1e-5  # see test_kv_exact.py


@pytest.fixture
def edit(pack: Pack) -> Edit:
    return Edit(pack, "flux")


def check_hole_alone(edit: Edit, out: Tensor) -> None:
    assert torch.isfinite(out).all()
    hole, canvas = edit.hole.expand_as(out), edit.canvas.expand_as(out)
    assert torch.equal(out[~hole], canvas[~hole])
    assert not torch.isclose(out[hole], canvas[hole]).any(0).all()


# The sampling


@pytest.mark.parametrize("route", ["nodes", "stock", "custom"])
@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "lcm", "uni_pc", "res_multistep"]
)
def test_visible_latent_is_bit_identical(edit: Edit, sampler: str, route: str) -> None:
    if sampler == "dpmpp_sde":
        pytest.importorskip("torchsde")
    context, call = edit.context(anchors=1, reuse=True), edit.pack.call
    lazy, latent = edit.attach(context), {"samples": edit.canvas, "noise_mask": edit.cells}
    if route == "nodes":
        args = context, edit.positive, edit.negative, 1, 2, 3.0, sampler, "simple", 1.0, 2
        (out,) = call("LazySample", edit.model, *args)
    elif route == "stock":
        (out,) = call("KSampler", lazy, 1, 2, 3.0, sampler, "simple", edit.positive, edit.negative, latent, 0.6)
    else:
        (noise,), (chosen,) = call("RandomNoise", 1), call("KSamplerSelect", sampler)
        (guider,) = call("CFGGuider", lazy, edit.positive, edit.negative, 2.0)
        out = call("SamplerCustomAdvanced", noise, guider, chosen, edit.sigmas(2), latent)[0]
    check_hole_alone(edit, out["samples"])
    assert edit.cache(context).count == 1


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_steps_between_anchors_compute_the_hole_alone(edit: Edit, cfg: float) -> None:
    """4 steps, 2 of them anchors; at cfg 1 one call of the model each, otherwise two for prompts of unlike length."""
    context = edit.context(anchors=2)
    out, counts = edit.counted(edit.attach(context), cfg=cfg)
    few, calls = edit.pack.part("lazydiff.cache.kv_cache").dilate(context.hole, 1).count, 1 if cfg == 1 else 2
    assert counts == ([context.hole.total] * calls + [few] * calls) * 2
    check_hole_alone(edit, out)


def test_prompts_of_one_length_share_a_call(edit: Edit) -> None:
    edit.negative = prompt("flux", 9, 2)
    assert edit.replay_error() <= CLOSE
    lazy = edit.attach(edit.context(anchors=1))
    assert len(edit.counted(lazy)[1]) == 4


def test_a_preview_at_every_step(edit: Edit) -> None:
    seen: list[tuple[int, int]] = []
    edit.sample(edit.attach(edit.context()), callback=lambda step, x0, x, steps: seen.append((step, steps)))
    assert seen == [(step, 4) for step in range(4)]


def test_variations_equal_single_samplings(edit: Edit) -> None:
    def sample(seed: int, variations: int) -> Tensor:
        args = edit.positive, edit.negative, seed, 3, 3.0, "euler", "simple", 1.0, variations
        return edit.pack.call("LazySample", edit.model, edit.context(anchors=2), *args)[0]["samples"]

    both = sample(7, 2)
    for row, seed in enumerate((7, 8)):
        alone = sample(seed, 1)
        assert (both[row : row + 1] - alone).abs().max() <= 1e-4 * alone.abs().max()  # sums in another order


@pytest.mark.parametrize("name", ["flux", "qwen-image"])
def test_canvases_of_a_batch_each_with_its_hole(pack: Pack, name: str) -> None:
    """What is computed is the union of the holes; what changes is each canvas's own hole."""
    edit = Edit(pack, name, rows=2)
    edit.mask = edit.mask.repeat(2, 1, 1, 1)
    edit.mask[1] = edit.mask[1].roll(40, -1)
    assert edit.replay_error() <= CLOSE
    check_hole_alone(edit, edit.sample(edit.attach(edit.context())))


def test_part_of_the_noise(edit: Edit) -> None:
    """denoise 0.5: with an anchor at every step it is the stock sampler."""
    latent, lazy = {"samples": edit.canvas, "noise_mask": edit.cells}, edit.attach(edit.context(anchors=2))
    args = 1, 2, 3.0, "euler", "simple", edit.positive, edit.negative, latent, 0.5
    stock, out = (edit.pack.call("KSampler", model, *args)[0]["samples"] for model in (edit.model, lazy))
    assert torch.equal(out[edit.hole], stock[edit.hole])
    check_hole_alone(edit, out)


# What belongs together


def test_what_does_not_fit_is_refused(edit: Edit, pack: Pack) -> None:
    context = edit.context()
    with pytest.raises(ValueError, match="another model"):
        edit.attach(context, tiny("flux"))
    lazy = edit.attach(context)
    mask, canvas = edit.mask, edit.canvas
    edit.mask = mask.roll(16, -1)
    with pytest.raises(ValueError, match="covers more than this context's hole"):
        edit.sample(lazy)
    edit.mask, edit.canvas = torch.zeros(1, 1, 256, 256), canvas[..., :32]
    with pytest.raises(ValueError, match="made for 320×256, the canvas is 256×256"):
        edit.sample(lazy)
    edit.mask, edit.canvas = mask, canvas.repeat(3, 1, 1, 1)
    two = edit.context()._replace(canvas=canvas.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="2 canvases, the batch is of 3"):
        edit.sample(edit.attach(two))
    wan = Edit(pack, "wan")
    lazy, wan.canvas = wan.attach(wan.context()), wan.canvas.repeat(1, 1, 3, 1, 1)
    with pytest.raises(ValueError, match="3 frames"):
        wan.sample(lazy)


@pytest.mark.parametrize("keep_text", [False, True])
def test_anchors_serve_other_seeds_and_prompts(edit: Edit, keep_text: bool) -> None:
    context = edit.context(anchors=2, text=keep_text, reuse=True)
    lazy = edit.attach(context)
    assert edit.dense_calls(lazy, context) == 4
    assert edit.dense_calls(lazy, context, seed=6) == 0
    edit.positive = prompt("flux", 7, seed=3)
    # CachedTensor text tokens are of their own prompt alone.
    assert edit.dense_calls(lazy, context) == (2 if keep_text else 0)
    check_hole_alone(edit, edit.sample(lazy))


def test_another_schedule_has_its_own_anchors(edit: Edit) -> None:
    context = edit.context(anchors=2, reuse=True)
    lazy = edit.attach(context)
    assert [edit.dense_calls(lazy, context, steps=steps) for steps in (4, 5, 4)] == [4, 4, 0]


def test_automatic_anchors_are_reused(edit: Edit) -> None:
    context = edit.context(reuse=True)
    lazy = edit.attach(context)
    assert 2 <= edit.dense_calls(lazy, context, steps=6) <= 12
    assert edit.dense_calls(lazy, context, steps=6, seed=6) == 0


@pytest.mark.parametrize("change", ["guidance", "reference_latents"])
def test_other_conditions_have_their_own_anchors(edit: Edit, change: str) -> None:
    """They change every token, unlike other words."""
    context = edit.context(anchors=1, reuse=True)
    lazy = edit.attach(context)
    for value in ({"guidance": 2.0}, {"guidance": 5.0}) if change == "guidance" else (1, 2):
        told = value if change == "guidance" else {change: [torch.randn(1, 16, 10, 12)]}
        edit.positive = prompt("flux", 9, 1, **told)
        assert edit.dense_calls(lazy, context) >= 1
        assert edit.dense_calls(lazy, context, seed=6) == 0


def test_lora_has_its_own_anchors_and_is_undone(edit: Edit) -> None:
    stock = edit.sample()
    context = edit.context(anchors=2, reuse=True)
    patched = edit.model.clone()
    weight = "diffusion_model.double_blocks.1.img_attn.qkv.weight"
    change = torch.randn(96, 32, generator=torch.Generator().manual_seed(1))
    assert patched.add_patches({weight: ("diff", (change,))}, 0.5) == [weight]
    plain, lora = edit.attach(context), edit.attach(context, patched)
    assert [edit.dense_calls(model, context) for model in (plain, lora, plain, lora)] == [4, 4, 0, 0]
    assert not torch.allclose(edit.sample(plain), edit.sample(lora))
    assert edit.replay_error(patched) <= CLOSE
    assert torch.equal(edit.sample(), stock)


# The model


REFERENCES = [
    *[("flux", method) for method in ("offset", "index", "uxo")],
    *[(name, method) for name in ("flux2", "qwen-image") for method in ("offset", "index", "index_timestep_zero")],
    *[("krea2", method) for method in ("index", "index_timestep_zero")],
    *[(name, "index") for name in ("mage-flow", "omnigen2", "boogu", "longcat")],
]


@pytest.mark.parametrize(("name", "method"), REFERENCES)
@pytest.mark.parametrize("keep_text", [False, True])
def test_reference_images(pack: Pack, name: str, method: str, keep_text: bool) -> None:
    """Flux Kontext and Qwen-Image-Edit: reference tokens are kept, and none of them is computed between anchors.

    A release that does not know a method takes another; two pictures of unlike size.
    """
    edit = Edit(pack, name)
    plain = edit.sample()
    pictures = [torch.randn(*edit.canvas.shape[:-2], *size) for size in ((10, 12), (8, 16))]
    edit.positive = prompt(name, 9, 1, reference_latents=pictures, reference_latents_method=method)
    assert not torch.allclose(edit.sample(), plain)
    assert edit.replay_error(text=keep_text) <= CLOSE


def test_guidance_embedding(edit: Edit) -> None:
    plain, edit.positive = edit.sample(), prompt("flux", 9, 1, guidance=9.0)
    assert not torch.allclose(edit.sample(), plain)
    assert edit.replay_error() <= CLOSE


@pytest.mark.parametrize("name", CONTROLNETS)
def test_controlnet(pack: Pack, name: str) -> None:
    edit, controlled = Edit(pack, name.removesuffix("-fun")), {}
    plain = edit.sample()
    context = edit.context(anchors=1, reuse=True)
    lazy = edit.attach(context)
    for hint in (1, 2):
        net = controlnet(name)
        net.set_cond_hint(torch.randn(edit.canvas.shape, generator=torch.Generator().manual_seed(hint)), 0.8)
        controlled[hint] = {"control": net, "control_apply_to_uncond": True}
        edit.positive = prompt(edit.name, 9, 1, **controlled[hint])
        assert not torch.allclose(edit.sample(), plain)
        assert edit.replay_error() <= CLOSE
        assert edit.dense_calls(lazy, context) == 2 and edit.dense_calls(lazy, context, seed=6) == 0


@pytest.mark.parametrize("name", ["flux", "wan", "pixart-sigma"])
def test_attention_override_of_another_pack(pack: Pack, name: str) -> None:
    """It is called for every attention, and what it answers is what counts."""
    edit, calls = Edit(pack, name), []

    def override(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0].shape)
        return function(*args, **kwargs) * 0.5

    model = edit.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    if name != "pixart-sigma":  # the host does not tell its self-attention of overrides; in a lazy call it is told
        assert edit.replay_error(model) <= CLOSE
        assert not torch.allclose(edit.sample(model), edit.sample())
    lazy = edit.attach(edit.context(reuse=True), model)
    edit.sample(lazy, steps=1)
    calls.clear()
    edit.sample(lazy, steps=1)
    per_block = {"flux": 1, "wan": 2, "pixart-sigma": 1}[name]
    blocks = {"flux": 4, "wan": 3, "pixart-sigma": 3}[name]
    assert len(calls) == 2 * per_block * blocks


def test_regional_prompts(edit: Edit) -> None:
    left = torch.zeros(1, 256, 320)
    left[..., :160] = 1
    words = edit.positive, prompt("flux", 6, 4)
    regions = [
        edit.pack.call("ConditioningSetMask", each, mask, "default", 1.0)[0]
        for each, mask in zip(words, (left, 1 - left), strict=True)
    ]
    edit.positive = edit.pack.call("ConditioningCombine", *regions)[0]
    assert edit.replay_error() <= CLOSE
    assert edit.dense_calls(edit.attach(context := edit.context(anchors=1)), context) == 3


def test_area_is_computed_whole(edit: Edit, caplog: pytest.LogCaptureFixture) -> None:
    """Its call sees a part of the canvas; the calls of other prompts stay lazy."""
    (area,) = edit.pack.call("ConditioningSetArea", prompt("flux", 6, 4), 160, 192, 64, 32, 1.0)
    edit.positive = edit.pack.call("ConditioningCombine", edit.positive, area)[0]
    stock = edit.sample(steps=2)
    context = edit.context(anchors=1)
    assert torch.equal(edit.sample(edit.attach(edit.context(anchors=2)), steps=2)[edit.hole], stock[edit.hole])
    with caplog.at_level("INFO"):
        counts = edit.counted(lazy := edit.attach(context), steps=3)[1]
    assert caplog.text.count("Set Area") == 1
    few = edit.pack.part("lazydiff.cache.kv_cache").dilate(context.hole, 1).count
    assert sorted(counts) == [few] * 4 + [10 * 12] * 6 + [context.hole.total] * 2
    check_hole_alone(edit, edit.sample(lazy, steps=3))


# Nothing keeps what nobody needs


def test_context_dies_with_those_who_use_it(edit: Edit) -> None:
    """Although the host leaves the model loaded and patched."""
    context = edit.context(reuse=True)
    lazy = edit.attach(context)
    edit.sample(lazy)
    alive = weakref.ref(edit.cache(context))
    del context, lazy
    gc.collect()
    assert alive() is None
    assert torch.isfinite(edit.sample()).all()


def test_model_dies_although_a_context_is_kept(edit: Edit) -> None:
    context = edit.context()
    edit.sample(edit.attach(context))
    alive = weakref.ref(edit.model.model)
    edit.model = None
    gc.collect()
    assert alive() is None and context.model() is None
    with pytest.raises(ValueError, match="another model"):
        edit.attach(context, tiny("flux"))
