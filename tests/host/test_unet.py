"""Stable Diffusion's UNets with a KV context are the same networks: a lazy step equals the whole one in the hole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .in_process import Pack
from .test_kv_recording import check_history, recorded
from .tiny_models import UNetEdit
from .tiny_sizes import UNETS

pytestmark = pytest.mark.host

CLOSE = 1e-5  # the same sums in another order, in single precision: about 1e-6 of the largest value


@pytest.fixture
def edit(pack: Pack) -> UNetEdit:
    return UNetEdit(pack, "sd15")


@pytest.mark.parametrize("name", UNETS)
def test_a_lazy_step_equals_the_whole_one(pack: Pack, name: str) -> None:
    """Two pictures, guidance, prompts of different length."""
    assert UNetEdit(pack, name, rows=2).replay_error() <= CLOSE


@pytest.mark.parametrize("name", UNETS)
def test_a_step_at_a_recorded_level_equals_the_whole_one(pack: Pack, name: str) -> None:
    assert UNetEdit(pack, name).recording_error() <= CLOSE


def test_odd_sizes_and_several_holes(pack: Pack) -> None:
    edit = UNetEdit(pack, "sd15")
    edit.canvas = torch.randn(2, 4, 33, 39)
    edit.mask = torch.zeros(2, 1, 33 * 8, 39 * 8)
    edit.mask[0, :, 200:264, 270:312] = edit.mask[1, :, :40, 10:60] = 1
    assert edit.replay_error() <= CLOSE


def test_kept_in_main_memory_and_in_fp8(edit: UNetEdit) -> None:
    assert edit.replay_error(place="host") <= CLOSE
    assert CLOSE < edit.replay_error(precision="fp8") < 0.03
    assert edit.recording_error(place="host") <= CLOSE < edit.recording_error(precision="fp8") < 0.03


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("name", ["sd15-inpaint", "sdxl"])
def test_every_step_full_is_the_stock_sampler(pack: Pack, name: str, sampler: str) -> None:
    edit = UNetEdit(pack, name)
    stock = edit.sample(steps=2, sampler=sampler)
    context = edit.context(anchors=1000)
    out = edit.sample(edit.attach(context), steps=2, sampler=sampler)
    assert torch.equal(out, torch.where(edit.hole, stock, edit.canvas))


def test_automatic_anchors_and_the_next_variation(
    edit: UNetEdit, sessions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a first sampling has recorded, a second one with other words and another seed goes on from."""
    monkeypatch.setattr(edit.pack.part("nodes.host.kv_sampling"), "UNET_THRESHOLD", 0.25)  # random keys change more
    context = edit.context(reuse=True)
    lazy = edit.attach(context)
    first = edit.sample(lazy, steps=6)
    assert 0 < sessions[0].recorded < 6 and sessions[0].recorded + sessions[0].replayed == 6 * 2
    edit.sample(lazy, steps=6, seed=6)
    assert not sessions[1].recorded and sessions[1].replayed
    assert torch.equal(first[~edit.hole], edit.canvas[~edit.hole])


def test_what_is_told_of_a_context(edit: UNetEdit) -> None:
    info = edit.pack.call("LazyContextInfo", edit.context())[0]
    assert "a sampling step: 13% of the canvas, in one rectangle" in info
    edit.mask[:] = 1
    assert "every step computes everything" in edit.pack.call("LazyContextInfo", edit.context())[0]


def test_several_variations_go_on_from_the_anchors_of_one(edit: UNetEdit, sessions: list[Any]) -> None:
    lazy = edit.attach(edit.context(reuse=True))
    edit.sample(lazy, steps=4)
    edit.canvas = edit.canvas.repeat(3, 1, 1, 1)
    out = edit.sample(lazy, steps=4)
    assert sessions[0].recorded and not sessions[1].recorded
    assert torch.equal(out[~edit.hole], edit.canvas[~edit.hole]) and not torch.equal(out[0], out[1])


def test_the_default_of_the_nodes_is_recorded(edit: UNetEdit) -> None:
    """Each prompt by one call of the whole map; all steps are lazy."""
    _, cells = edit.counted(edit.attach(edit.context("recorded")), steps=4)
    whole = [count >= edit.canvas[0, 0].numel() for count in cells]
    assert sum(whole) == 2 and len(whole) == 2 + 2 * 4


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd15-inpaint"])
def test_what_ran_before_a_recording_does_not_matter(pack: Pack, name: str) -> None:
    before = ["another prompt", "an interrupted sampling", "more pictures"] if name == "sd15" else []
    check_history(UNetEdit(pack, name), ["another seed", *before], steps=2)


def test_a_recording_that_does_not_fit(
    edit: UNetEdit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one level there is room, of two not: they are recorded one after the other. Of none, every step is whole."""
    size = edit.pack.part("nodes.host.unet_sampling").unet_bytes(edit.model, edit.context())
    free, stock = edit.sample(edit.attach(edit.context("recorded", levels=2))), edit.sample()
    for part in ("lazydiff.cache.kv_cache", "lazydiff.cache.recording", "nodes.host.kv_recording"):
        monkeypatch.setattr(edit.pack.part(part), "MEGABYTE", 1)
    little = edit.context("recorded", levels=2, limit=round(2.2 * size))  # two prompts
    assert recorded(edit, lazy := edit.attach(little)) == 4
    assert (edit.sample(lazy) - free).abs().max() <= CLOSE * free.abs().max()
    with caplog.at_level("INFO"):
        out = edit.sample(edit.attach(edit.context("recorded", levels=2, limit=size // 2)))
    assert torch.equal(out, torch.where(edit.hole, stock, edit.canvas))
    assert "every step computes the whole canvas, because one recorded noise level needs more" in caplog.text


def test_memory_is_that_of_the_formula(pack: Pack) -> None:
    for name in ("sd15", "sdxl"):
        edit = UNetEdit(pack, name)
        context = edit.context(anchors=2, reuse=True)
        edit.sample(edit.attach(context))
        formula = pack.part("nodes.host.unet_sampling").unet_bytes(edit.model, context)
        assert edit.cache(context).bytes == pytest.approx(4 * formula, rel=0.05)


def test_an_interrupted_sampling_leaves_nothing(edit: UNetEdit) -> None:
    import comfy.model_management as mm

    def stop(*unused: Any) -> None:
        raise mm.InterruptProcessingException

    context = edit.context(reuse=True)
    with pytest.raises(mm.InterruptProcessingException):
        edit.sample(edit.attach(context), callback=stop)
    assert not edit.cache(context).bytes
    assert not any("forward" in vars(module) for module in edit.model.model.modules())


def test_the_model_is_afterwards_what_it_was_before(edit: UNetEdit) -> None:
    before = edit.sample(steps=2)
    edit.sample(edit.attach(edit.context(anchors=1)), steps=2)
    assert torch.equal(edit.sample(steps=2), before)
    for module in edit.model.model.modules():
        assert "forward" not in vars(module)


def test_a_hole_of_nearly_everything_is_the_unpatched_model(edit: UNetEdit) -> None:
    edit.mask[:] = 1
    edit.mask[..., :16, :16] = 0
    stock = edit.sample(steps=2)
    assert torch.equal(edit.sample(edit.attach(edit.context()), steps=2)[edit.hole], stock[edit.hole])
