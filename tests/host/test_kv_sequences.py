"""Where a network puts text, canvas and reference images in its sequences: all of it is found, and no more computed."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from .in_process import Pack
from .tiny_models import Edit, prompt, tiny

pytestmark = pytest.mark.host

CLOSE = 1e-5  # see test_kv_exact.py


@pytest.mark.parametrize("name", ["krea2", "omnigen2", "boogu"])
def test_reference_tokens_of_a_joint_sequence_are_left_out(pack: Pack, name: str) -> None:
    edit = Edit(pack, name)
    pictures = [torch.randn(*edit.canvas.shape[:-2], 10, 13)]  # no whole number of tokens
    told = {"reference_latents": pictures, "reference_latents_method": "index"}
    edit.positive = prompt(name, 9, 1, **told)
    context = edit.context(reuse=True)
    lazy, few = edit.attach(context), edit.pack.part("lazydiff.cache.kv_cache").dilate(context.hole, 1).count
    edit.sample(lazy, steps=1, cfg=1.0)
    assert edit.counted(lazy, steps=1, cfg=1.0)[1] == [few + 9]


def test_reference_images_of_another_time_by_default(pack: Pack) -> None:
    """Qwen-Image-Edit 2511."""
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    if "default_ref_method" not in inspect.signature(QwenImageTransformer2DModel).parameters:
        pytest.skip("this release of ComfyUI has no Qwen-Image-Edit 2511")
    edit = Edit(pack, "qwen-image", model=tiny("qwen-image", default_ref_method="index_timestep_zero"))
    edit.positive = prompt("qwen-image", 9, 1, reference_latents=[torch.randn(1, 16, 1, 10, 12)])
    assert edit.replay_error() <= CLOSE


MASKS = {
    "flux": (torch.randn(1, 9 + 320, 9 + 320), {"attention_mask_img_shape": (16, 20)}),  # Redux
    "ideogram4": (torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]]), {}),
    "hunyuan-image": (torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0]]), {}),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("keep_text", [False, True])
def test_attention_mask(pack: Pack, name: str, keep_text: bool) -> None:
    edit = Edit(pack, name)
    plain, (mask, told) = edit.sample(), MASKS[name]
    edit.positive = prompt(name, 9, 1, attention_mask=mask, **told)
    assert not torch.allclose(edit.sample(), plain)
    assert edit.replay_error(text=keep_text) <= CLOSE


def test_negative_prompt_without_text(pack: Pack) -> None:
    """Ideogram 4's, of the picture alone."""
    edit = Edit(pack, "ideogram4")
    plain, edit.negative = edit.sample(), [[None, {}]]
    assert not torch.allclose(edit.sample(), plain)
    assert edit.replay_error() <= CLOSE


def test_kept_text_is_of_all_its_encoders(pack: Pack) -> None:
    """HiDream's blocks each see another layer of a language model beside the words of T5."""
    edit = Edit(pack, "hidream")
    context = edit.context(anchors=1, text=True, reuse=True)
    lazy = edit.attach(context)
    assert edit.dense_calls(lazy, context) == 2 and edit.dense_calls(lazy, context, seed=6) == 0
    edit.positive[0][1]["conditioning_llama3"] = torch.randn(1, 2, 7, 20)
    assert edit.dense_calls(lazy, context) == 1


@pytest.mark.parametrize("head", ["conv", "linear"])
def test_pixels_are_made_of_their_neighbours_too(pack: Pack, head: str) -> None:
    """Chroma Radiance: its last layer is a convolution, so that there is a ring whatever is asked for."""
    edit = Edit(pack, "chroma-radiance", model=tiny("chroma-radiance", nerf_final_head_type=head))
    assert edit.context(ring=0).settings.ring == 1
    assert edit.replay_error(ring=0) <= CLOSE


def test_every_class_is_in_the_table(pack: Pack) -> None:
    table = (Path(__file__).parents[2] / "docs" / "stock-models.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in table for name in pack.part("nodes.host.architectures").ARCHITECTURES)
