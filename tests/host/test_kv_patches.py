"""Patches of tokens and ControlNets: what they add to a token is added where that is computed, and to no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .in_process import Pack
from .test_kv_promises import controlnet
from .test_kv_recording import check_recorded_keys, recorded
from .tiny_models import Edit, prompt
from .tiny_patches import PATCHED, node, patched

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
