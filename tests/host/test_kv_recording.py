"""Recordings without the hole: what they keep, whom they serve, and when there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .in_process import Pack
from .tiny_models import TINY, Edit, prompt

pytestmark = pytest.mark.host

CLOSE = 1e-5  # see test_kv_exact.py


@pytest.fixture(params=TINY)
def each(request: pytest.FixtureRequest, pack: Pack) -> Edit:
    return Edit(pack, request.param, rows=2)


@pytest.fixture(params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def edit(pack: Pack) -> Edit:
    return Edit(pack, "flux")


def recorded(edit: Edit, lazy: Any, **how: Any) -> int:
    """How many calls of a sampling record."""
    begin, calls = edit.pack.part("nodes.host.kv_recording").CanvasRecorder.record, []

    def record(self: Any, own: Any, number: int, levels: Any, *rest: Any) -> None:
        calls.append(levels)
        begin(self, own, number, levels, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(edit.pack.part("nodes.host.kv_recording").CanvasRecorder, "record", record)
        edit.sample(lazy, **how)
    return len(calls)


# What is kept


def masked_class(pack: Pack) -> type:
    """The slow way: a call that computes every token, in which no query sees a key of the hole."""
    KVCall = pack.part("nodes.host.kv_call").KVCall

    class Masked(KVCall):
        refining = False

        def refuse(self, reason: str) -> None:
            raise AssertionError(reason)

        def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            visible = self.layout.of(*self.sequence(self.attentions[0])).visible
            super().extend(k, v)
            return k.index_select(-2, visible), v.index_select(-2, visible)

        def refiner(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            self.refining = True
            answer = forward(*args, **kwargs)
            self.refining = False
            return answer

        def attention(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            q, k, v, *others = args
            if self.refining:
                total = self.layout.total
                tokens = total, total + self.shape.tail(self.network, total)
                axis = next(i for i, size in enumerate(k.shape) if size in tokens)
                mask = torch.zeros(k.shape[axis])
                mask[self.layout.hole] = -torch.inf
                return function(q, k, v, others[0], **{**kwargs, "mask": mask.expand(1, 1, len(mask), -1)})
            if self.attentions and self.masked and kwargs.get("mask") is not None:
                visible = self.layout.of(self.text, self.image).visible
                kwargs["mask"] = kwargs["mask"].index_select(-1, visible)
            return super().attention(function, *args, **kwargs)

    return Masked


def check_recorded_keys(edit: Edit, monkeypatch: pytest.MonkeyPatch, model: Any = None, **settings: Any) -> None:
    sampling, found = edit.pack.part("nodes.host.kv_sampling"), []
    for kind in (sampling.VisibleCall, masked_class(edit.pack)):
        monkeypatch.setattr(sampling, "VisibleCall", kind)
        context = edit.context("recorded", **settings)
        edit.sample(edit.attach(context, model), sigmas=edit.sigmas(4)[:3])
        found.append(edit.cache(context))
    fast, slow = found
    assert fast.bytes == slow.bytes and fast.count == slow.count == 2 * settings["levels"]
    for name, entry in fast.entries.items():
        for a, b in zip(entry.tensors, slow.entries[name].tensors, strict=True):
            assert (a - b).abs().max() <= CLOSE * b.abs().max()


@pytest.mark.parametrize("keep_text", [False, True])
def test_recorded_keys_are_those_of_a_full_call_that_hides_the_hole(
    each: Edit, keep_text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two canvases, two noise levels in one batch, two prompts."""
    check_recorded_keys(each, monkeypatch, levels=2, text=keep_text)


def test_the_hole_is_not_seen(name: str, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in it while others are recorded, also where a network mixes tokens before its blocks: bit by bit."""
    edit, recording, found = Edit(pack, name), pack.part("nodes.host.kv_recording"), []
    noise = recording.recorded_noise
    for content in (0.0, 5.0):
        monkeypatch.setattr(recording, "recorded_noise", lambda shape, c=content: noise(shape) + c * edit.hole[:1])
        context = edit.context("recorded", levels=1)
        edit.sample(edit.attach(context), sigmas=edit.sigmas(4)[:2])
        found.append(edit.cache(context).entries)
    for key, entry in found[0].items():
        assert all(map(torch.equal, entry.tensors, found[1][key].tensors))


# Whom it serves


def another_prompt(edit: Edit, lazy: Any, steps: int) -> None:
    own, edit.positive = edit.positive, prompt(edit.name, edit.positive[0][0].shape[1], 3)
    edit.sample(lazy, steps)
    edit.positive = own


def interrupted(edit: Edit, lazy: Any, steps: int) -> None:
    import comfy.model_management as mm

    def stop(*of_step: Any) -> None:
        raise mm.InterruptProcessingException

    with pytest.raises(mm.InterruptProcessingException):
        edit.sample(lazy, steps, callback=stop)


def two_pictures(edit: Edit, lazy: Any, steps: int) -> None:
    canvas, edit.canvas = edit.canvas, edit.canvas.repeat(2, *[1] * (edit.canvas.ndim - 1))
    edit.sample(lazy, steps)
    edit.canvas = canvas


def cleared(edit: Edit, lazy: Any, steps: int) -> None:
    for cache in edit.pack.part("lazydiff.cache.kv_context").CACHES.values():
        cache.clear()


BEFORE: dict[str, tuple[Callable[[Edit, Any, int], Any], int]] = {  # and how many calls record after it
    "nothing": (lambda edit, lazy, steps: None, 2),
    "the same": (Edit.sample, 0),
    "another seed": (lambda edit, lazy, steps: edit.sample(lazy, steps, seed=6), 0),
    "another prompt": (another_prompt, 1),
    "an interrupted sampling": (interrupted, 0),
    "another number of steps": (lambda edit, lazy, steps: edit.sample(lazy, steps + 1), 2),
    "more pictures": (two_pictures, 0),
    "a cleared cache": (cleared, 2),
}


def check_history(edit: Edit, before: list[str], steps: int) -> None:
    """Bit by bit, and without a switch."""
    expected = edit.sample(edit.attach(edit.context("recorded", levels=2)), steps=steps)
    lazy = edit.attach(context := edit.context("recorded", levels=2))
    for what in before:
        run, records = BEFORE[what]
        run(edit, lazy, steps)
        assert recorded(edit, lazy, steps=steps) == records, what
        assert torch.equal(edit.sample(lazy, steps=steps), expected), what
        assert edit.cache(context).count == 4


def test_what_ran_before_does_not_matter(edit: Edit) -> None:
    stock = edit.sample()
    check_history(edit, list(BEFORE), steps=4)
    assert torch.equal(edit.sample(), stock)


def test_another_seed_before_does_not_matter_to_any_architecture(name: str, pack: Pack) -> None:
    check_history(Edit(pack, name), ["nothing", "another seed"], steps=2)


def test_another_canvas_mask_or_model_is_recorded_anew(edit: Edit) -> None:
    """What is known of one latent says nothing of another on the same context, nor that of a model without a LoRA."""
    lazy = edit.attach(context := edit.context("recorded"))
    assert [recorded(edit, lazy), recorded(edit, lazy, seed=6)] == [2, 0]
    visible = torch.where(edit.hole, edit.canvas, 0.9 * edit.canvas)
    edit.canvas = torch.where(edit.hole, 0.5 * edit.canvas, edit.canvas)
    assert recorded(edit, lazy) == 0, "what lies under the mask is not looked at"
    edit.canvas = visible
    assert recorded(edit, lazy) == 2
    patched = edit.model.clone()
    weight = "diffusion_model.double_blocks.1.img_attn.qkv.weight"
    assert patched.add_patches({weight: ("diff", (torch.randn(96, 32),))}, 0.5) == [weight]
    assert recorded(edit, edit.attach(context, patched)) == 2
    assert recorded(edit, edit.attach(edit.context("recorded"))) == 2


def test_other_conditions_are_recorded_anew(edit: Edit) -> None:
    lazy, counts = edit.attach(edit.context("recorded")), []
    told = {"guidance": 2.0}, {"guidance": 3.0}, *({"reference_latents": [torch.randn(1, 16, 4, 4)]} for _ in range(2))
    for more in told:
        edit.positive = prompt("flux", 9, 1, **more)
        counts.append(recorded(edit, lazy))
    assert counts == [2, 1, 1, 1] and recorded(edit, lazy, seed=6) == 0


REFERENCES = [
    ("flux", "offset"), ("flux", "index"), ("flux2", "index_timestep_zero"), ("qwen-image", "index_timestep_zero"),
    ("qwen-image", "index"), ("omnigen2", None), ("boogu", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method"), REFERENCES)
def test_reference_images_are_recorded_too(
    pack: Pack, name: str, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of unlike size, of another time step where the network knows of that; against full calls as above."""
    edit = Edit(pack, name)
    pictures = [torch.randn(*edit.canvas.shape[:-2], *size) for size in ((10, 12), (8, 16))]
    edit.positive = prompt(name, 9, 1, reference_latents=pictures, reference_latents_method=method)
    check_recorded_keys(edit, monkeypatch, levels=1)


def test_regional_prompts_are_recorded_each(edit: Edit) -> None:
    left = torch.zeros(1, 256, 320)
    left[..., :160] = 1
    words = edit.positive, prompt("flux", 6, 4)
    regions = [
        edit.pack.call("ConditioningSetMask", one, mask, "default", 1.0)[0]
        for one, mask in zip(words, (left, 1 - left), strict=True)
    ]
    edit.positive = edit.pack.call("ConditioningCombine", *regions)[0]
    lazy = edit.attach(context := edit.context("recorded"))
    assert recorded(edit, lazy) == 3 and edit.dense_calls(lazy, context) == 0


def test_variations_share_one_recording(edit: Edit) -> None:
    """Of two canvases with two variations each, the two are recorded; pictures are those of single samplings."""
    edit.canvas = torch.cat((edit.canvas, edit.canvas.flip(-1)))
    edit.mask = edit.mask.repeat(2, 1, 1, 1)
    lazy = edit.attach(context := edit.context("recorded"))
    edit.mask = edit.mask[:1]
    edit.sample(lazy)
    kept, canvas = edit.cache(context).bytes, edit.canvas
    edit.canvas = canvas.repeat(2, 1, 1, 1)
    assert recorded(edit, lazy) == 0 and edit.cache(context).bytes == kept
    edit.canvas = torch.cat((canvas, 0.5 * canvas))  # not variations of the same canvases
    assert recorded(edit, lazy) == 2 and edit.cache(context).bytes == 2 * kept


# When there are none


def check_anchors(edit: Edit, caplog: pytest.LogCaptureFixture, why: str, model: Any = None) -> None:
    """Some calls compute everything, and one line of the log says why; the picture is that of anchors."""
    expected = edit.sample(edit.attach(edit.context(), model))
    caplog.clear()
    context = edit.context("recorded")
    with caplog.at_level("INFO"):
        out, counts = edit.counted(edit.attach(context, model))
    assert torch.equal(out, expected) and max(counts) >= context.hole.total > min(counts)
    lines = [line for line in caplog.messages if line.startswith("Lazy Diffusion")]
    assert len(lines) == 1 and "some steps compute the whole canvas" in lines[0] and why in lines[0]


def test_what_cannot_be_recorded(
    edit: Edit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, *args: Any) -> None:
        raise edit.pack.part("nodes.host.architectures").Dense("the reason")

    monkeypatch.setattr(edit.pack.part("nodes.host.kv_recording").CanvasRecorder, "record", refuse)
    check_anchors(edit, caplog, "the reason")


# Memory


def bytes_of_a_level(edit: Edit) -> int:
    return 2 * edit.pack.part("nodes.host.kv_sampling").anchor_bytes(edit.model, edit.context())


def limited(edit: Edit, monkeypatch: pytest.MonkeyPatch, levels: float) -> Any:
    monkeypatch.setattr(edit.pack.part("lazydiff.cache.kv_cache"), "MEGABYTE", 1)
    monkeypatch.setattr(edit.pack.part("lazydiff.cache.recording"), "MEGABYTE", 1)
    monkeypatch.setattr(edit.pack.part("nodes.host.kv_recording"), "MEGABYTE", 1)
    return edit.context("recorded", levels=2, limit=int(levels * bytes_of_a_level(edit)))


def test_a_level_weighs_what_the_formula_says(edit: Edit) -> None:
    context = edit.context("recorded", levels=2)
    edit.sample(edit.attach(context))
    assert edit.cache(context).bytes == 2 * bytes_of_a_level(edit)


def test_little_room_records_level_after_level(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same picture up to the order of sums, and the next one costs as much."""
    expected = edit.sample(edit.attach(edit.context("recorded", levels=2)))
    context = limited(edit, monkeypatch, 1.2)
    lazy, sizes = edit.attach(context), []
    out = edit.sample(lazy, callback=lambda *of_step: sizes.append(edit.cache(context).bytes))
    assert (out - expected).abs().max() <= CLOSE * expected.abs().max()
    assert 0 < max(sizes) <= context.settings.limit
    assert recorded(edit, lazy) == 4 and torch.equal(edit.sample(lazy, seed=5), out)


def test_no_room_for_one_level(
    edit: Edit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stock, lazy = edit.sample(), edit.attach(limited(edit, monkeypatch, 0.3))
    with caplog.at_level("INFO"):
        out = edit.sample(lazy)
    assert torch.equal(out, torch.where(edit.hole, stock, edit.canvas)) and caplog.text.count("memory limit") == 1


def test_out_of_memory_in_a_batch_of_levels(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as mm

    expected = edit.sample(edit.attach(edit.context("recorded", levels=2)))
    network, batches = edit.model.model.diffusion_model, []
    forward = type(network).forward

    def fail(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batches.append(len(x))
        if len(x) > 1:
            raise mm.OOM_EXCEPTION("CUDA out of memory")
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(type(network), "forward", fail)
    out = edit.sample(edit.attach(edit.context("recorded", levels=2)))
    assert batches[0] == 2 and set(batches[1:]) == {1} and len(batches) == 1 + 2 * 2 + 2 * 4
    assert (out - expected).abs().max() <= CLOSE * expected.abs().max()


def test_fp8_and_main_memory(edit: Edit) -> None:
    expected = edit.sample(edit.attach(edit.context("recorded")))
    assert torch.equal(edit.sample(edit.attach(edit.context("recorded", place="host"))), expected)
    context = edit.context("recorded", precision="fp8")
    error = edit.sample(edit.attach(context)) - expected
    assert 0 < error.abs().max() < 0.1 * expected.abs().max()
    assert edit.cache(context).bytes == pytest.approx(bytes_of_a_level(edit) / 4, rel=1e-3)


def test_an_interrupt_within_the_first_recording_leaves_nothing(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as mm

    def stop(*args: Any, **kwargs: Any) -> None:
        raise mm.InterruptProcessingException

    lazy = edit.attach(context := edit.context("recorded"))
    with monkeypatch.context() as patched, pytest.raises(mm.InterruptProcessingException):
        patched.setattr(edit.pack.part("nodes.host.kv_recording").VisibleCall, "attention", stop)
        edit.sample(lazy)
    assert not edit.cache(context).bytes
    assert torch.equal(edit.sample(lazy), edit.sample(edit.attach(edit.context("recorded"))))
