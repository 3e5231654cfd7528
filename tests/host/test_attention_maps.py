"""Attention to words, observed in stock models: it is what the model attends with, and observing changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .in_process import Pack, scene
from .tiny_models import Edit, latent, prompt, tiny

pytestmark = pytest.mark.host

# Softmax and mean in another order, in fp32.
CLOSE = 1e-5
JOINT = ["flux", "flux-schnell", "flux2", "chroma", "sd3", "qwen-image", "lumina2", "z-image", "auraflow"]
STOCK = [*JOINT, "sd15", "sdxl", "pixart-alpha", "pixart-sigma"]
PLACES = [0, 2, 3, 7]  # of the nine tokens of an edit's positive prompt


class Observed(Edit):
    """An edit whose model is observed."""

    def __init__(self, pack: Pack, name: str, length: int = 9, **given: Any):
        super().__init__(pack, name, **given)
        self.maps: list[Tensor] = []
        part = pack.part("nodes.host.attention_maps")
        self.observer = part.AttentionObserver(self.model, PLACES, length, self.maps.append)

    def with_override(self, override: Callable[..., Tensor]) -> Any:
        """The MODEL with an attention function of a user's."""
        model = self.model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model


@pytest.mark.parametrize("name", STOCK)
def test_observing_changes_no_bit(pack: Pack, name: str) -> None:
    """Neither while a model is observed nor afterwards; guided, so that prompts of two lengths are there."""
    edit = Observed(pack, name)
    expected = edit.sample(steps=2)
    assert torch.equal(edit.sample(edit.observer.attach(edit.model), steps=2), expected)
    assert expected.isfinite().all() and len(edit.maps) == 2 and all(torch.isfinite(maps).all() for maps in edit.maps)
    edit.maps.clear()
    assert torch.equal(edit.sample(steps=2), expected) and not edit.maps


def rows_of_positive(options: dict[str, Any], rows: int) -> list[int]:
    roles = options["cond_or_uncond"]
    size = rows // len(roles)
    return [i for i in range(rows) if roles[i // size] == 0]


@pytest.mark.parametrize("name", JOINT)
def test_joint_attention_equals_direct_softmax(pack: Pack, name: str) -> None:
    """Of every joint attention that a user's own function was given; that function stays in its place."""
    edit, calls = Observed(pack, name), []
    network, shape = edit.model.model.diffusion_model, pack.part("nodes.host.architectures").architecture(edit.model)
    grid = [side * edit.cell // edit.observer.token for side in edit.canvas.shape[-2:]]
    total = grid[0] * grid[1]
    before = {"auraflow": 8}.get(name, 0)  # registers
    text = {"z-image": 32}.get(name, before + 9)  # filled up

    def given(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        rows = rows_of_positive(kwargs["transformer_options"], len(q))
        tokens = -2 if kwargs.get("skip_reshape") else 1
        if rows and q.shape[tokens] == k.shape[tokens] >= text + total:
            heads_first = [
                x if kwargs.get("skip_reshape") else x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k)
            ]
            calls.append([x[rows].double() for x in heads_first])
        return function(q, k, v, heads, *args, **kwargs)

    edit.sample(edit.observer.attach(edit.with_override(given)), steps=1)
    blocks = sum(len(getattr(network, stage.blocks)) for stage in shape.stages)
    assert len(calls) == blocks
    first, end = round(0.3 * blocks), round(0.75 * blocks)
    found = []
    for q, k in calls[first : max(end, first + 1)]:
        q, k = q[:, :, text : text + total], k[:, :, [before + place for place in PLACES]]
        maps = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        found.append(maps.unflatten(1, grid))
    pooled = pool(torch.stack(found).mean(0), min(32 // edit.observer.token, min(grid) // 16))
    (maps,) = edit.maps
    assert maps.shape == pooled.shape and (maps - pooled).abs().max() < CLOSE


def pool(maps: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(maps.movedim(-1, 1), side).movedim(1, -1) if side > 1 else maps


LAYERS = {
    "sd15": [(place, 0) for place in ("input_blocks.7", "input_blocks.8", *(f"output_blocks.{i}" for i in (3, 4, 5)))],
    "sdxl": [
        (place, i)
        for place in ("input_blocks.7", "input_blocks.8", "middle_block", *(f"output_blocks.{i}" for i in (0, 1, 2)))
        for i in (0, 4, 9)
    ],
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_unet_maps_equal_direct_softmax_of_published_layers(pack: Pack, name: str, together: bool) -> None:
    """Queries and keys as the layers' own projections make them. Of two prompts in one batch the host repeats both
    until they are equally long; a repeated word has the attention of its repetitions."""
    edit = Observed(pack, name)
    edit.negative = prompt(name, 18, 2) if together else edit.positive
    network = edit.model.model.diffusion_model
    seen: dict[str, Tensor] = {}
    hooks, attentions = [], []
    for place, i in LAYERS[name]:
        attention = network.get_submodule(f"{place}.1.transformer_blocks.{i}.attn2")
        attentions.append(attention)
        for side in ("to_q", "to_k"):
            key = f"{place}.{i}.{side}"
            hooks.append(
                getattr(attention, side).register_forward_hook(lambda m, a, out, key=key: seen.update({key: out}))
            )
    rows: list[int] = []

    def watch(function: Any, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows[:] = rows_of_positive(kwargs["transformer_options"], len(q)) or rows
        return function(q, *args, **kwargs)

    try:
        edit.sample(edit.observer.attach(edit.with_override(watch)), steps=1)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for (place, i), attention in zip(LAYERS[name], attentions, strict=True):
        q, k = (
            seen[f"{place}.{i}.{side}"][rows].double().unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for side in ("to_q", "to_k")
        )
        maps = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        maps = sum(maps[..., start : start + 9] for start in range(0, maps.shape[-1], 9))
        found.append(maps[..., PLACES].unflatten(1, (8, 10)))
    assert found[0].isfinite().all() and (k.shape[2] == 18) == together
    (maps,) = edit.maps
    assert (maps - torch.stack(found).mean(0)).abs().max() < CLOSE


@pytest.mark.parametrize("name", ["pixart-alpha", "pixart-sigma"])
def test_pixart_maps_equal_direct_softmax(pack: Pack, name: str) -> None:
    edit = Observed(pack, name)
    module = edit.model.model.diffusion_model.blocks[1].cross_attn  # the middle one of three
    seen: list[Tensor] = []
    hooks = [
        each.register_forward_hook(lambda m, a, out: seen.append(out)) for each in (module.q_linear, module.kv_linear)
    ]
    edit.negative = prompt(name, 9, 2)  # of the same length: both prompts in one batch
    try:
        edit.sample(steps=1)
    finally:
        for hook in hooks:
            hook.remove()
    edit.sample(edit.observer.attach(edit.model), steps=1)
    q = seen[0].unflatten(2, (2, -1)).transpose(1, 2).double()
    k = seen[1].reshape(2, 9, 2, 2, -1)[:, :, 0].transpose(1, 2).double()
    both = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1).mean(1)[..., PLACES].unflatten(1, (16, 20))
    (observed,) = edit.maps
    # Which of the two is the positive prompt's is for the host to decide.
    errors = [float((observed - maps).abs().max()) for maps in both]
    assert len(observed) == 1 and min(errors) < CLOSE < max(errors)


def test_own_maps_equal_direct_softmax(pack: Pack) -> None:
    """Of the text that the model pads and masks; and its latents stay as they are, bit by bit."""
    model, clip, vae = pack.call("LazyCheckpointLoader", "lazydiffusion-small.safetensors")
    prompt = pack.part("nodes.host.words").read_prompt(clip, "a striped blue tree")
    maps: list[Tensor] = []
    part = pack.part("nodes.host.attention_maps")
    observer = part.AttentionObserver(model, prompt.places, prompt.length, maps.append)
    calls: list[Tensor] = []

    def given(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        logits = q.double() @ k.double().transpose(2, 3) / q.shape[-1] ** 0.5
        mask = kwargs.get("mask")
        calls.append((logits if mask is None else logits + mask).softmax(-1).mean(1))
        return function(q, k, v, heads, *args, **kwargs)

    own = model.clone()
    own.model_options["transformer_options"]["optimized_attention_override"] = given
    canvas = {"samples": vae.encode(scene(2)[0].movedim(1, -1))}
    args = 1, 1, 1.0, "euler", "normal", prompt.conditioning, prompt.conditioning, canvas, 0.5
    (expected,) = pack.call("KSampler", model, *args)
    (result,) = pack.call("KSampler", observer.attach(own), *args)
    assert torch.equal(result["samples"], expected["samples"])
    crossing = calls[1::2]  # after each block's attention of the picture to itself
    blocks = len(model.model.diffusion_model.blocks)
    assert len(crossing) == blocks
    chosen = torch.stack(crossing[round(0.3 * blocks) : round(0.75 * blocks)]).mean(0)[..., prompt.places]
    (observed,) = maps
    assert (observed - chosen.unflatten(1, (12, 12))).abs().max() < CLOSE


def test_several_seeds_and_a_negative_prompt_give_rows_of_the_positive_one(pack: Pack) -> None:
    edit = Observed(pack, "sd15", rows=3)
    edit.sample(edit.observer.attach(edit.model), steps=1)
    (together,) = edit.maps
    assert len(together) == 3
    edit.maps.clear()
    edit.negative = edit.positive
    edit.sample(edit.observer.attach(edit.model), steps=1, cfg=1.0)
    (alone,) = edit.maps
    assert torch.allclose(together, alone, atol=CLOSE)


@pytest.mark.parametrize("name", ["flux", "pixart-sigma", "sd15"])
def test_interrupt_leaves_nothing(pack: Pack, name: str) -> None:
    from comfy.model_management import InterruptProcessingException

    edit = Observed(pack, name)
    expected = edit.sample(steps=2)

    def stop(step: int, *unused: Any) -> None:
        raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        edit.sample(edit.observer.attach(edit.model), steps=2, callback=stop)
    assert not edit.observer.sight.rows
    edit.maps.clear()
    assert torch.equal(edit.sample(steps=2), expected) and not edit.maps


def test_calls_that_leave_tokens_out_are_not_observed(pack: Pack) -> None:
    """A KV context computes the hole alone between anchors: only anchor steps see where words are looked for."""
    edit = Observed(pack, "flux")
    context = edit.context(anchors=2)
    lazy = edit.attach(context)
    out = edit.sample(edit.observer.attach(lazy), steps=6)
    assert torch.equal(out[~edit.hole], edit.canvas[~edit.hole])
    assert 0 < len(edit.maps) < 6
    assert len({maps.shape for maps in edit.maps}) == 1


@pytest.mark.parametrize("name", ["wan", "hunyuan-dit"])
def test_model_of_unknown_attention_is_refused_in_words(pack: Pack, name: str) -> None:
    with pytest.raises(ValueError, match="attends to its prompt is not known: attention masks are found by"):
        pack.part("nodes.host.attention_maps").AttentionObserver(tiny(name), [0], 9, print)


def test_odd_latents_are_seen_too(pack: Pack) -> None:
    """A UNet halves an odd side upwards."""
    edit = Observed(pack, "sd15")
    edit.canvas, edit.mask = latent(edit.model, 33, 21), torch.ones(1, 1, 33 * 8, 21 * 8)
    edit.sample(edit.observer.attach(edit.model), steps=1)
    assert edit.maps[0].shape == (1, 9, 6, len(PLACES))


def test_stub_model_is_refused(pack: Pack) -> None:
    class Cascade: ...

    stub = SimpleNamespace(model=SimpleNamespace(diffusion_model=Cascade()))
    with pytest.raises(ValueError, match="is not known"):
        pack.part("nodes.host.attention_maps").AttentionObserver(stub, [0], 9, print)
