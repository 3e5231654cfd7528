"""Contexts, gates and masks that the model finds, in one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .in_process import Pack, interrupted, scene
from .stand_in_clip import SETTINGS

pytestmark = pytest.mark.host

SEARCH = {**SETTINGS, "mask_threshold": 0.5, "seed": 0, "seeds": 2, "steps": 10, "strength": 0.5, "cfg": 1.0}


@pytest.fixture
def model(pack: Pack) -> tuple[Any, Any, Any]:
    return pack.call("LazyCheckpointLoader", "lazydiffusion-small.safetensors")


@pytest.fixture
def edited(pack: Pack, model: tuple[Any, Any, Any]) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """What a mask, a context and a gated sampler make of a picture, and the canvas."""
    lazy, clip, vae = model
    image = scene(9)[0].movedim(1, -1)  # red boats
    positive, negative = (pack.call("CLIPTextEncode", clip, text)[0] for text in ("a green tree", ""))

    def edit(gated: Any, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        context, canvas = pack.call("LazyContextEncode", lazy, vae, image, mask, 0, 0)
        args = gated, context, positive, negative, 1, 6, 1.0, "euler", "simple", 1.0, 1
        return pack.call("LazySample", *args)[0]["samples"], canvas

    return edit


def test_gated_edit_of_a_mask_that_a_gated_model_finds(
    pack: Pack, model: tuple[Any, Any, Any], edited: Callable[..., tuple[Tensor, dict[str, Tensor]]]
) -> None:
    """The first search and the first sampling calibrate, the next ones skip; what is visible stays in all of them."""
    lazy, clip, vae = model
    image = scene(9)[0].movedim(1, -1)
    (gated,) = pack.call("LazyGates", lazy, "calibrate", 0.4, 0.5)
    plain, first, second = (
        pack.call("AttentionMask", each, clip, vae, image, "a boat", **SEARCH) for each in (lazy, gated, gated)
    )
    assert torch.equal(first[1], plain[1]) and not torch.equal(second[1], plain[1])
    # Attentions of the picture to itself are skipped, and must not be taken for those to the words.
    overlap = (second[0] * plain[0]).sum() / torch.maximum(second[0], plain[0]).sum()
    assert overlap > 0.7 and plain[0].any()
    results = []
    for _ in range(2):
        samples, canvas = edited(gated, second[0])
        shown = (canvas["noise_mask"] == 0).expand_as(samples)
        assert shown.any() and torch.equal(samples[shown], canvas["samples"][shown])
        results.append(samples)
    assert not torch.equal(*results)


def test_interrupted_edit_leaves_everything_as_it_was(
    pack: Pack, model: tuple[Any, Any, Any], edited: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from comfy.model_management import InterruptProcessingException

    lazy, clip, vae = model
    image, mask, _ = scene(9)
    image, mask = image.movedim(1, -1), mask[:, 0]
    (gated,) = pack.call("LazyGates", lazy, "calibrate", 0.4, 0.5)
    before, _ = edited(lazy, mask)

    with interrupted(monkeypatch):
        for run in (
            lambda: pack.call("AttentionMask", gated, clip, vae, image, "a boat", **SEARCH),
            lambda: edited(gated, mask),
        ):
            with pytest.raises(InterruptProcessingException):
                run()
    assert torch.equal(edited(lazy, mask)[0], before)
    assert torch.equal(edited(gated, mask)[0], before)  # nothing was calibrated by what was interrupted
