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
    begin, calls = edit.pack.part("nodes.host.kv_recording").VisibleRecorder.record, []

    def record(self: Any, own: Any, number: int, levels: Any, *rest: Any) -> None:
        calls.append(levels)
        begin(self, own, number, levels, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(edit.pack.part("nodes.host.kv_recording").VisibleRecorder, "record", record)
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
            text = self.text if self.attentions[0] == "joint" else 0
            visible = self.layout.of(text, self.image).visible
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
                axis = k.shape.index(self.layout.total + self.shape.tail(self.network, self.layout.total))
                mask = torch.zeros(k.shape[axis])
                mask[self.layout.hole] = -torch.inf
                return function(q, k, v, *others, **{**kwargs, "mask": mask.expand(1, 1, len(mask), -1)})
            if self.attentions and self.masked and kwargs.get("mask") is not None:
                visible = self.layout.of(self.text, self.image).visible
                kwargs["mask"] = kwargs["mask"].index_select(-1, visible)
            return super().attention(function, *args, **kwargs)

    return Masked


@pytest.mark.parametrize("keep_text", [False, True])
def test_recorded_keys_are_those_of_a_full_call_that_hides_the_hole(
    each: Edit, keep_text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two canvases, two noise levels in one batch, two prompts."""
    recording, found = each.pack.part("nodes.host.kv_recording"), []
    for kind in (recording.VisibleCall, masked_class(each.pack)):
        monkeypatch.setattr(recording, "VisibleCall", kind)
        context = each.context("recorded", levels=2, text=keep_text)
        each.sample(each.attach(context), sigmas=each.sigmas(4)[:3])
        found.append(each.cache(context))
    fast, slow = found
    assert fast.bytes == slow.bytes and fast.count == slow.count == 4
    for name, entry in fast.entries.items():
        for a, b in zip(entry.tensors, slow.entries[name].tensors, strict=True):
            assert (a - b).abs().max() <= CLOSE * b.abs().max()


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
