"""A stock transformer with a KV context is the same network: whatever is computed equals what it computes without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .in_process import Pack
from .tiny_models import TINY, Edit, tiny

pytestmark = pytest.mark.host

# The same sums in another order, in single precision: about 1e-6 of the largest value.
CLOSE = 1e-5


@pytest.fixture(params=TINY)
def edit(request: pytest.FixtureRequest, pack: Pack) -> Edit:
    return Edit(pack, request.param, rows=2)


def check_replay(edit: Edit, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """A step sampled twice: first it records, then it replays at the very same noise level."""
    sigmas, hole = edit.sigmas(2)[1:], edit.hole
    expected, dense = edit.counted(sigmas=sigmas)
    context = edit.context(reuse=True, **settings)
    lazy = edit.attach(context)
    recorded = edit.sample(lazy, sigmas=sigmas)
    assert torch.equal(recorded[hole], expected[hole])
    replayed, counts = edit.counted(lazy, sigmas=sigmas)
    scale = expected[hole].abs().max()
    assert (replayed - expected)[hole].abs().max() <= CLOSE * scale
    assert torch.equal(replayed[~hole], edit.canvas[~hole])

    # Only the hole and its ring went through the blocks; with them the text, where the output module sees that too.
    computed = edit.pack.part("lazydiff.cache.kv_cache").dilate(context.hole, context.settings.ring).count
    assert context.hole.count < computed < context.hole.total / 3
    shape = edit.pack.part("nodes.host.architectures").architecture(edit.model)
    joint = shape.joint_output or shape.output is None and shape.stages[-1].joint
    if joint and settings.get("text"):
        assert set(counts) == {computed + 1}  # the one text token that blocks cannot do without
    elif joint:
        tail = shape.tail(edit.model.model.diffusion_model, context.hole.total)
        assert [all_ - context.hole.total - tail for all_ in dense] == [some - computed for some in counts]
    elif "hunyuan" in edit.name and shape.text_last(edit.model.model.diffusion_model):
        assert set(counts) == {computed + tokens for tokens in ((1,) if settings.get("text") else (9, 5))}
    else:
        assert set(counts) == {computed}

    # And it is what was kept that makes it so.
    replay = edit.pack.part("lazydiff.cache.kv_cache").CacheReader
    monkeypatch.setattr(replay, "__call__", lambda self, k, v, probes: (k, v))
    without = edit.sample(lazy, sigmas=sigmas)
    assert (without - expected)[hole].abs().max() > 100 * CLOSE * scale


@pytest.mark.parametrize("keep_text", [False, True])
def test_replay_of_the_same_step_is_exact(edit: Edit, keep_text: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures, cfg 3, prompts of different length: what one sampling keeps of each is its own."""
    check_replay(edit, monkeypatch, text=keep_text)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_every_step_an_anchor_is_the_stock_sampler(edit: Edit, sampler: str) -> None:
    """Bit by bit in the hole, for the first seed and the second, with two calls a step too; and nothing is kept."""
    expected = {seed: edit.sample(steps=2, sampler=sampler, seed=seed) for seed in (5, 6)}
    for settings in ({"anchors": 1000}, {"anchors": 2, "reuse": True}):
        lazy = edit.attach(context := edit.context(**settings))
        for seed, stock in expected.items():
            out = edit.sample(lazy, steps=2, sampler=sampler, seed=seed)
            assert torch.equal(out, torch.where(edit.hole, stock, edit.canvas))
        assert not edit.cache(context).bytes


def test_the_model_is_afterwards_what_it_was_before(edit: Edit) -> None:
    before = edit.sample(steps=2)
    edit.sample(edit.attach(edit.context(anchors=1)), steps=2)
    assert torch.equal(edit.sample(steps=2), before)
    for module in edit.model.model.modules():
        forward = module.forward  # the host puts it back as an attribute
        assert forward.__func__ is type(module).forward and forward.__self__ is module


def test_hole_of_everything_is_the_unpatched_model(edit: Edit) -> None:
    edit.mask = torch.ones_like(edit.mask)
    expected = edit.sample(steps=1)
    context = edit.context(reuse=True)
    assert torch.equal(edit.sample(edit.attach(context), steps=1), expected)
    assert not edit.cache(context).count, "there is nothing to keep"


# The host's own loading. It reads what a checkpoint is from the shapes of its weights; of most architectures it takes
# the width for granted (Flux before 0.33: 3072, PixArt: 1152, Qwen-Image: 3072 …), so that no tiny one can be loaded.
# Those are built by the configuration that loading would arrive at, in all other tests.

LOADED = {
    "sd3": {"num_blocks": 2},  # the width is 64 times as much
    "flux": {"hidden_size": 256, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0},  # heads are as wide as in the large model
}


@pytest.mark.parametrize("name", LOADED)
def test_checkpoint_loaded_by_the_host(pack: Pack, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import comfy.ldm.flux.model
    import comfy.sd

    if name == "flux" and not hasattr(comfy.ldm.flux.model.FluxParams, "txt_norm"):
        pytest.skip("this release of ComfyUI takes the width of Flux for granted")
    state = {key: value.clone() for key, value in tiny(name, **LOADED[name]).model.diffusion_model.state_dict().items()}
    model = comfy.sd.load_diffusion_model_state_dict(state)
    check_replay(Edit(pack, name, model=model, rows=2), monkeypatch)
