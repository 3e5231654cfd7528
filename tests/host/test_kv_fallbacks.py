"""What cannot be lazy is computed whole, in the stock sampler's own bits; and what is kept knows its limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from .in_process import Pack
from .tiny_models import Edit, TinyVAE, prompt

pytestmark = pytest.mark.host

CLOSE = 1e-5  # see test_kv_exact.py


@pytest.fixture
def edit(pack: Pack) -> Edit:
    return Edit(pack, "flux")


def check_dense(
    edit: Edit, caplog: pytest.LogCaptureFixture, why: str, model: Any = None, calls: int = 6, **settings: Any
) -> None:
    """Three steps, of two prompts each, are the stock sampler's in every bit; one line of the log says why."""
    stock = edit.sample(model, steps=3)
    context = edit.context(reuse=True, **settings)
    with caplog.at_level("INFO"):
        out, counts = edit.counted(edit.attach(context, model), steps=3)
    assert torch.equal(out[edit.hole], stock[edit.hole])
    assert torch.equal(out[~edit.hole], edit.canvas[~edit.hole])
    lines = [line for line in caplog.messages if line.startswith("Lazy Diffusion")]
    assert len(lines) == 1 and "every step computes the whole canvas" in lines[0] and why in lines[0]
    assert len(counts) <= calls and min(counts) >= context.hole.total
    assert not edit.cache(context).bytes


def test_attention_mask_that_a_network_makes_for_each_block(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    """Qwen-Image's, of a prompt that is padded."""
    edit = Edit(pack, "qwen-image")
    plain = edit.sample()
    edit.positive = prompt("qwen-image", 9, 1, attention_mask=torch.tensor([[1] * 6 + [0] * 3]))
    if torch.equal(edit.sample(), plain):
        pytest.skip("this release of ComfyUI makes no such mask")
    check_dense(edit, caplog, "it uses an attention mask")


def test_attention_of_another_release(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    """Ernie's is spelled out here, as the host does not tell it of overrides."""
    edit = Edit(pack, "ernie")
    kind = type(edit.model.model.diffusion_model.layers[0].self_attention)

    class Other(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().forward(*args, **kwargs) * 0.5

    for layer in edit.model.model.diffusion_model.layers:
        layer.self_attention.__class__ = Other
    check_dense(edit, caplog, "rotates its keys in another way", calls=7)


UNKNOWN = {  # what the prompt holds beside words, and why that is computed whole
    "hidream": ("concat_latent_image", "tokens of the canvas's"),  # HiDream-E1: tokens between those of the canvas
    "hunyuan-video": ("ref_latent", "tokens of the canvas's"),
    "z-image": ("reference_latents", "another time step"),  # Z-Image Omni
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_pictures_whose_tokens_are_elsewhere(pack: Pack, caplog: pytest.LogCaptureFixture, name: str) -> None:
    edit, (told, why) = Edit(pack, name), UNKNOWN[name]
    picture = torch.randn(edit.canvas.shape)
    edit.positive = prompt(name, 9, 1, **{told: [picture] if told == "reference_latents" else picture})
    check_dense(edit, caplog, why)


def test_first_frame(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    """Hunyuan's video models may be given one, of another time step than those that follow."""
    edit = Edit(pack, "hunyuan-video")
    edit.positive = prompt("hunyuan-video", 9, 1, guiding_frame_index=0)
    check_dense(edit, caplog, "another time step")


def test_sequence_that_is_not_as_known(pack: Pack, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    """A later release of the host may lay its tokens out in another way."""
    known = pack.part("nodes.host.architectures").ARCHITECTURES
    monkeypatch.setitem(known, "NextDiT", known["NextDiT"]._replace(tail=lambda network, tokens: 10**6))
    check_dense(Edit(pack, "lumina2"), caplog, "tokens of the canvas's")


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_step_skipping_of_the_host(
    edit: Edit, host: ModuleType, caplog: pytest.LogCaptureFixture, node: str
) -> None:
    asyncio.run(host.load_custom_node(str(Path(host.__file__).parent / "comfy_extras" / "nodes_easycache.py")))
    (model,) = edit.pack.call(node, edit.model, 0.2, 0.0, 1.0, False)
    check_dense(edit, caplog, "easycache skips steps", model)


def test_blocks_replaced_by_another_pack(edit: Edit, caplog: pytest.LogCaptureFixture) -> None:
    def halved(args: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        out = more["original_block"](args)
        return {**out, "img": out["img"] * 0.5}

    model = edit.model.clone()
    model.set_model_patch_replace(halved, "dit", "double_block", 1)
    check_dense(edit, caplog, "another node replaces the model's blocks", model)
    assert not torch.allclose(edit.sample(model), edit.sample())


@pytest.mark.parametrize("place", ["post_input", "attn2_patch", "mlp_patch"])
def test_patch_that_is_not_known(edit: Edit, caplog: pytest.LogCaptureFixture, place: str) -> None:
    model = edit.model.clone()
    model.set_model_patch(lambda args: args, place)
    check_dense(edit, caplog, place, model)


def test_after_a_dense_sampling_the_next_finds_its_own_anchors(edit: Edit) -> None:
    """A schedule counts as known only when a lazy sampling went through it."""
    context, patched = edit.context(reuse=True), edit.model.clone()
    patched.set_model_patch(lambda args: args, "post_input")
    edit.sample(edit.attach(context, patched))
    lazy, fresh = edit.attach(context), edit.attach(edit.context())
    assert torch.equal(edit.sample(lazy), edit.sample(fresh))


# Memory


def bytes_of_an_anchor(edit: Edit, prompts: int = 2, **settings: Any) -> int:
    return prompts * edit.pack.part("nodes.host.kv_sampling").anchor_bytes(edit.model, edit.context(**settings))


def limited(edit: Edit, monkeypatch: pytest.MonkeyPatch, anchors: float) -> int:
    """A memory limit in bytes, of so many anchors."""
    monkeypatch.setattr(edit.pack.part("lazydiff.cache.kv_cache"), "MEGABYTE", 1)
    return int(anchors * bytes_of_an_anchor(edit))


# Attention of both kinds, keys for fewer heads than queries, text in every place.
SIZED = [
    "flux", "sd3", "wan", "qwen-image", "pixart-sigma", "lumina2", "auraflow", "z-image", "krea2", "anima", "ernie",
    "ideogram4", "kandinsky5", "hidream", "omnigen2", "boogu", "chroma-radiance", "hunyuan-image",
]  # fmt: skip


@pytest.mark.parametrize("name", SIZED)
def test_memory_is_that_of_the_formula(pack: Pack, name: str) -> None:
    edit = Edit(pack, name)
    context = edit.context(anchors=2, reuse=True)
    edit.sample(edit.attach(context))
    assert edit.cache(context).bytes == pytest.approx(2 * bytes_of_an_anchor(edit), rel=0.05)


def test_older_anchors_are_forgotten_first(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampling that uses each anchor until the next one needs no older ones; a later one records them again."""
    expected = edit.sample(edit.attach(edit.context(anchors=4)), steps=5)
    context = edit.context(anchors=4, limit=limited(edit, monkeypatch, 2.5), reuse=True)
    lazy, cache = edit.attach(context), edit.cache(context)
    assert torch.equal(edit.sample(lazy, steps=5), expected)
    assert cache.count == 2 and 0 < cache.bytes <= context.settings.limit
    assert sorted(next(iter(cache.kept.values()))) == sorted(edit.sigmas(5)[2:4].tolist())
    again = edit.sample(lazy, steps=5)
    assert (again - expected).abs().max() <= 1e-3 * expected.abs().max()  # all recorded or exact replays


def test_one_anchor_that_does_not_fit(
    edit: Edit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check_dense(edit, caplog, "memory limit", limit=limited(edit, monkeypatch, 0.3))


def test_out_of_memory_while_recording(
    edit: Edit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import comfy.model_management as mm

    kept, made = edit.pack.part("lazydiff.cache.kv_cache").CachedTensor, []
    of = kept.of.__func__

    def fail(cls: type, *args: Any) -> Any:
        made.append(args)
        if len(made) > 3:
            raise mm.OOM_EXCEPTION("CUDA out of memory")
        return of(cls, *args)

    monkeypatch.setattr(kept, "of", classmethod(fail))
    check_dense(edit, caplog, "not enough memory")
    assert len(made) == 4, "it is not tried again"


def test_fp8(edit: Edit) -> None:
    """Each number is rounded to 4 bits, by 3 % on average; of many, less is left of that."""
    error = edit.replay_error(precision="fp8")
    assert 1e-4 < error < 0.03
    context = edit.context(anchors=1, precision="fp8", reuse=True)
    edit.sample(edit.attach(context))
    assert edit.cache(context).bytes == bytes_of_an_anchor(edit) / 4  # of fp32's


def test_kept_in_main_memory(edit: Edit) -> None:
    assert edit.replay_error(place="host") <= CLOSE


@pytest.mark.parametrize(
    ("anchors", "reuse", "expected"),  # automatic: expected to be 4, of which there are no more than steps
    [(0, False, 2), (0, True, 3), (1, False, 1), (2, False, 2), (2, True, 2), (3, True, 0), (1000, False, 0)],
)
def test_host_knows_of_the_memory_beforehand(
    edit: Edit, monkeypatch: pytest.MonkeyPatch, anchors: int, reuse: bool, expected: int
) -> None:
    """Three steps, each anchor of a positive and a negative prompt. When all are anchors nothing is kept; without reuse
    at most two are there at a time."""
    import comfy.model_management as mm

    asked: list[dict[str, float]] = []
    load = mm.load_models_gpu
    monkeypatch.setattr(mm, "load_models_gpu", lambda *args, **sizes: (asked.append(sizes), load(*args, **sizes)))
    lazily = edit.attach(edit.context(anchors=anchors, reuse=reuse))
    for model in (edit.model, lazily, edit.model, lazily):
        edit.sample(model, steps=3)
    needed = bytes_of_an_anchor(edit) * expected
    for size in ("memory_required", "minimum_memory_required"):
        stock, lazy, after, again = (each[size] for each in asked)
        assert lazy - stock == pytest.approx(needed, rel=1e-3) and after == stock
        if not reuse:
            assert again == lazy
        else:  # what is there takes no more; the automatic policy has made fewer anchors than expected
            assert again == stock if anchors else stock <= again < lazy


# Models of an unknown kind


def test_unknown_kind_stays_dense(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A UNet with a block that is not known here."""
    edit = Edit(pack, "sd15")
    block = edit.model.model.diffusion_model.input_blocks[1][0]
    block.__class__ = type("OtherBlock", (type(block),), {})
    said: list[str] = []
    monkeypatch.setattr(pack.part("nodes.host.encode"), "show", said.append)
    image = torch.rand(1, 256, 320, 3)
    context, latent = pack.call("LazyContextEncode", edit.model, TinyVAE(4), image, edit.mask[:, 0], 0, 0)
    assert len(said) == 1 and "every step computes the whole canvas" in said[0]
    assert "every step computes everything" in pack.call("LazyContextInfo", context)[0]
    edit.canvas = latent["samples"]
    stock, out = (edit.sample(model, steps=1, cfg=1.0) for model in (edit.model, edit.attach(context)))
    assert torch.equal(out[edit.hole], stock[edit.hole]) and not torch.equal(out, edit.canvas)
    assert torch.equal(out[~edit.hole], edit.canvas[~edit.hole])
    assert torch.equal(edit.sample(steps=1, cfg=1.0), stock)
