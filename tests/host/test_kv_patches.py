"""Patches of tokens and ControlNets: what they add to a token is added where that is computed, and to no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .in_process import Pack
from .test_kv_recording import check_anchors, check_recorded_keys, recorded
from .tiny_models import Edit, prompt, tiny
from .tiny_patches import CONTROLNETS, PATCHED, controlnet, node, patched, z_image_fun

pytestmark = pytest.mark.host

CLOSE = 1e-5  # see test_kv_exact.py


@pytest.fixture(params=PATCHED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# Patches


@pytest.mark.parametrize("keep_text", [False, True])
def test_patched_replay_is_exact(pack: Pack, name: str, keep_text: bool) -> None:
    """Two pictures, cfg 3, prompts of different length."""
    edit, model = patched(pack, name)
    assert not torch.allclose(edit.sample(model, steps=1), edit.sample(steps=1))
    assert edit.replay_error(model, text=keep_text) <= CLOSE


def test_patched_keys_are_recorded_without_the_hole(pack: Pack, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, model = patched(pack, name)
    lazy = edit.attach(context := edit.context("recorded", levels=2), model)
    assert edit.dense_calls(lazy, context, steps=2) == 0 and recorded(edit, lazy, steps=2, seed=6) == 0
    check_recorded_keys(edit, monkeypatch, model, levels=2)


@pytest.mark.parametrize("name", ["Qwen-Image DiffSynth", "Anima LLLite"])
def test_patched_prompts_that_share_a_call(pack: Pack, name: str) -> None:
    edit, model = patched(pack, name)
    edit.negative = prompt(edit.name, 9, 2)
    assert edit.replay_error(model) <= CLOSE
    assert edit.dense_calls(edit.attach(context := edit.context(anchors=1), model), context, steps=2) == 1


def test_patches_see_the_computed_tokens_alone(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of Z-Image's control network is given all that the blocks before it computed; no later one is."""
    edit, model = patched(pack, "Z-Image Fun")
    context = edit.context("recorded")
    lazy, counts = edit.attach(context, model), []
    edit.sample(lazy, sigmas=edit.sigmas(2)[:2])
    network = model.model_options["transformer_options"]["patches"]["double_block"][0].model_patch.model
    attention = type(network.control_layers[0].attention)
    forward, modules = attention.forward, {id(layer.attention) for layer in network.control_layers}

    def counted(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if id(self) in modules:
            counts.append(x.shape[1])
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(attention, "forward", counted)
    edit.sample(lazy, sigmas=edit.sigmas(2)[:2])
    computed = pack.part("lazydiff.cache.kv_cache").dilate(context.hole, context.settings.ring).count
    assert counts == [computed] * 2 * 2  # layers, prompts


def test_memory_counts_a_control_network(pack: Pack) -> None:
    edit = Edit(pack, "z-image", model=tiny("z-image", n_layers=21, n_refiner_layers=2))
    model, context = z_image_fun(edit, layers=3), edit.context("recorded")  # which join blocks 0, 10 and 20
    edit.sample(edit.attach(context, model), steps=1, cfg=1.0)
    expected = pack.part("nodes.host.kv_sampling").anchor_bytes(model, context)
    assert edit.cache(context).bytes == pytest.approx(expected, rel=0.05)  # what fills Z-Image's tokens up


@pytest.mark.parametrize("name", ["Qwen-Image DiffSynth", "Z-Image Fun inpaint"])
def test_patches_are_afterwards_what_they_were_before(pack: Pack, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a call that was broken off among its blocks."""
    edit, model = patched(pack, name)
    stock, lazy = edit.sample(model, steps=1), edit.attach(edit.context("recorded"), model)
    edit.sample(lazy, steps=1)
    assert torch.equal(edit.sample(model, steps=1), stock)
    block, kind = pack.part("nodes.host.kv_call").KVCall.block, pack.part("nodes.host.architectures").Dense
    broken: list[int] = []

    def fail(self: Any, *args: Any, last: bool = False, **kwargs: Any) -> Any:
        if last and self.some:
            broken.append(1)
            raise kind("the reason")
        return block(self, *args, last=last, **kwargs)

    monkeypatch.setattr(pack.part("nodes.host.kv_call").KVCall, "block", fail)
    out = edit.sample(edit.attach(edit.context("recorded"), model), steps=1)
    assert broken and torch.equal(out, torch.where(edit.hole, stock, edit.canvas))


def test_anchors_of_one_patch_do_not_serve_another(pack: Pack) -> None:
    """Two MODELs of the same weights on one context."""
    edit, model = patched(pack, "Qwen-Image DiffSynth")
    context = edit.context(anchors=1, reuse=True)
    assert edit.dense_calls(edit.attach(context, model), context) == 2
    assert edit.dense_calls(edit.attach(context, model), context, seed=6) == 0
    assert edit.dense_calls(edit.attach(context), context) == 2


def test_flux_kv_cache(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps the keys of reference images between steps; a context keeps them anyway, and says so."""
    edit = Edit(pack, "flux2")
    edit.positive = prompt("flux2", 9, 1, reference_latents=[torch.randn(1, 128, 4, 4)])
    (model,) = pack.call(node(edit, "nodes_flux.py", "FluxKVCache"), edit.model)
    how: dict[str, Any] = {"sigmas": edit.sigmas(2)[1:], "cfg": 1.0}  # with guidance, the host's shares keys of prompts
    stock = edit.sample(model, **how)
    context = edit.context(reuse=True)
    lazy, hole = edit.attach(context, model), edit.hole
    with caplog.at_level("INFO"):
        assert torch.equal(edit.sample(lazy, **how)[hole], stock[hole])
    assert (edit.sample(lazy, **how) - stock)[hole].abs().max() <= CLOSE * stock[hole].abs().max()
    lines = [line for line in caplog.messages if line.startswith("Lazy Diffusion")]
    assert len(lines) == 1 and "Flux KV Cache does nothing in lazy steps" in lines[0]
    assert edit.dense_calls(edit.attach(context := edit.context("recorded"), model), context, cfg=1.0) == 0
    assert torch.equal(edit.sample(model, **how), stock)


# ControlNets


def controlled(edit: Edit, name: str = "flux", pictures: int = 1, seed: int = 3, **how: Any) -> Edit:
    net, (_, *shape) = controlnet(name), edit.canvas.shape
    hint = torch.randn(pictures, *shape, generator=torch.Generator().manual_seed(seed))
    net.set_cond_hint(hint, 0.8, **how)
    edit.positive = prompt(edit.name, 9, 1, control=net, control_apply_to_uncond=True)
    return edit


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("name", CONTROLNETS)
def test_residuals_of_visible_tokens_are_recorded(
    pack: Pack, name: str, pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two canvases, two noise levels, two prompts; one picture to go by, or one for each canvas."""
    edit = controlled(Edit(pack, name.removesuffix("-fun"), rows=2), name, pictures)
    lazy = edit.attach(context := edit.context("recorded", levels=2))
    assert edit.dense_calls(lazy, context) == 0 and recorded(edit, lazy, seed=6) == 0
    assert recorded(controlled(edit, name, pictures, seed=4), lazy) == 4
    check_recorded_keys(edit, monkeypatch, levels=2)


def test_each_canvas_goes_by_its_own_picture(pack: Pack) -> None:
    """The first of two is what it is alone, up to the order of sums; its noise is too."""
    edit = controlled(Edit(pack, "flux", rows=2), pictures=2)
    both, net = edit.sample(edit.attach(edit.context("recorded"))), edit.positive[0][1]["control"]
    edit.canvas = edit.canvas[:1]
    net.set_cond_hint(net.cond_hint_original[:1], 0.8)
    alone = edit.sample(edit.attach(edit.context("recorded")))
    assert (both[:1] - alone).abs().max() <= 1e-4 * alone.abs().max()


def test_residuals_of_some_levels_alone(pack: Pack) -> None:
    """A ControlNet that ends half-way: a level behind that is recorded as without it."""
    found = []
    for how in ({"timestep_percent_range": (0.0, 0.3)}, None):
        edit = Edit(pack, "flux") if how is None else controlled(Edit(pack, "flux"), **how)
        context = edit.context("recorded", levels=2)
        edit.sample(edit.attach(context), cfg=1.0)
        found.append({level: entry for (_, level, _), entry in edit.cache(context).entries.items()})
    early, late = sorted(found[0], reverse=True)
    pairs = [zip(found[0][level].tensors, found[1][level].tensors, strict=True) for level in (early, late)]
    # Recorded one by one, and in one batch: sums in another order.
    same = [all((a - b).abs().max() <= CLOSE * b.abs().max() for a, b in each) for each in pairs]
    assert same == [False, True]


def test_controlnet_of_another_pack(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    edit = controlled(Edit(pack, "flux"))
    net = edit.positive[0][1]["control"]

    class Other(type(net)):  # type: ignore[misc]
        pass

    net.__class__ = Other
    check_anchors(edit, caplog, "another node pack's ControlNet")
