"""A graph with its seed makes one latent, bit by bit, whatever was sampled on its context before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .in_process import Pack
from .tiny_models import TINY, Edit, prompt

pytestmark = pytest.mark.host


@pytest.fixture(params=TINY)
def edit(request: pytest.FixtureRequest, pack: Pack) -> Edit:
    return Edit(pack, request.param)


def interrupt(edit: Edit, lazy: Any) -> None:
    """A sampling that ends in the third of its four steps, when two anchors have been kept."""
    import comfy.model_management as mm

    def stop(step: int, *rest: Any) -> None:
        if step == 2:
            raise mm.InterruptProcessingException

    with pytest.raises(mm.InterruptProcessingException):
        edit.sample(lazy, callback=stop)


def another_prompt(edit: Edit, lazy: Any) -> None:
    own, edit.positive = edit.positive, prompt(edit.name, edit.positive[0][0].shape[1], 3)
    edit.sample(lazy)
    edit.positive = own


BEFORE = {
    "nothing": lambda edit, lazy: None,
    "the same": Edit.sample,
    "another seed": lambda edit, lazy: edit.sample(lazy, seed=6),
    "another prompt": another_prompt,
    "an interrupted sampling": interrupt,
}


@pytest.mark.parametrize("anchors", [0, 2])
def test_what_ran_before_does_not_matter(edit: Edit, anchors: int, sessions: list[Any]) -> None:
    stock, expected = edit.sample(), edit.sample(edit.attach(edit.context(anchors=anchors)))
    lazy = edit.attach(context := edit.context(anchors=anchors))
    for what, run in BEFORE.items():
        run(edit, lazy)
        assert torch.equal(edit.sample(lazy), expected), what
        assert not edit.cache(context).count
    assert all(session.recorded for session in sessions)
    assert all(session.replayed for session in sessions) or not anchors  # random weights may ask for every step
    assert torch.equal(edit.sample(), stock)


def test_an_interrupted_sampling_leaves_nothing_to_reuse(edit: Edit) -> None:
    """Neither what it has kept itself nor what those of its schedule before it had."""
    expected = edit.sample(edit.attach(edit.context()))
    lazy = edit.attach(context := edit.context(reuse=True))
    cache = edit.cache(context)
    assert cache is edit.pack.part("lazydiff.cache.kv_context").CACHES[context.key]
    for _ in range(2):
        interrupt(edit, lazy)
        assert not cache.kept and not cache.complete
        assert torch.equal(edit.sample(lazy), expected) and cache.bytes
