"""What other nodes put into a UNet is carried by lazy steps, or every step is whole and one line says why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from .in_process import Pack
from .tiny_models import UNetEdit, prompt, randomise
from .tiny_sizes import UNETS

pytestmark = pytest.mark.host

CLOSE = 1e-5  # see test_unet.py


@pytest.fixture
def edit(pack: Pack) -> UNetEdit:
    return UNetEdit(pack, "sd15")


def check_full(edit: UNetEdit, model: Any, why: str, caplog: pytest.LogCaptureFixture, **settings: Any) -> None:
    """Three steps are the stock sampler's in every bit; one line of the log says why."""
    stock, context = edit.sample(model, steps=3), edit.context(reuse=True, **settings)
    with caplog.at_level("INFO"):
        out = edit.sample(edit.attach(context, model), steps=3)
    assert torch.equal(out, torch.where(edit.hole, stock, edit.canvas))
    lines = [line for line in caplog.messages if line.startswith("Lazy Diffusion")]
    assert len(lines) == 1 and "every step computes the whole canvas" in lines[0] and why in lines[0]
    assert not edit.cache(context).bytes


def image_prompt(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """As IP-Adapter with a mask: pictures to go by, in places that it finds from the number of tokens."""
    height, width = options["activations_shape"][2:]
    assert q.shape[1] == height * width
    place = torch.linspace(0, 1, height)[:, None].expand(height, width).reshape(1, -1, 1)
    picture = torch.randn(1, 4, k.shape[2], generator=torch.Generator().manual_seed(1))
    return torch.softmax(q @ k.mT, -1) @ v + place * (torch.softmax(q @ picture.mT, -1) @ picture)


def test_ip_adapter(edit: UNetEdit) -> None:
    model = edit.model.clone()
    for block in (1, 2, 4, 7, 8):
        model.set_model_attn2_replace(image_prompt, "input", block)
    model.set_model_attn2_replace(image_prompt, "middle", 0)
    assert edit.replay_error(model) <= CLOSE and edit.recording_error(model) <= CLOSE
    assert not torch.allclose(edit.sample(model, steps=1), edit.sample(steps=1))


def test_anchors_beside_an_ip_adapter_are_of_their_model(edit: UNetEdit, sessions: list[Any]) -> None:
    context, model = edit.context(reuse=True), edit.model.clone()
    model.set_model_attn2_replace(image_prompt, "middle", 0)
    edit.sample(edit.attach(context))
    edit.sample(edit.attach(context, model))
    assert sessions[1].recorded


def test_patches_of_cross_attention(edit: UNetEdit) -> None:
    def steered(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        return q * torch.linspace(0.5, 1.5, q.shape[1])[None, :, None], k * 2, v

    def weaker(x: Tensor, options: dict[str, Any]) -> Tensor:
        return x * torch.linspace(1, 0, x.shape[1])[None, :, None]

    model = edit.model.clone()
    model.set_model_attn2_patch(steered)
    model.set_model_attn2_output_patch(weaker)
    assert edit.replay_error(model) <= CLOSE and edit.recording_error(model) <= CLOSE


def test_lora(edit: UNetEdit) -> None:
    model, weights = edit.model.clone(), edit.model.model.state_dict()
    for name in ("input_blocks.1.0.in_layers.2", "input_blocks.1.1.transformer_blocks.0.attn1.to_k"):
        key = f"diffusion_model.{name}.weight"
        model.add_patches({key: ("diff", (torch.randn(weights[key].shape),))}, 0.1)
    assert edit.replay_error(model) <= CLOSE and edit.recording_error(model) <= CLOSE
    assert not torch.allclose(edit.sample(model, steps=1), edit.sample(steps=1))


def test_controlnet(edit: UNetEdit) -> None:
    import comfy.cldm.cldm
    import comfy.controlnet

    sizes = {name: value for name, value in UNETS["sd15"][1].items() if name != "out_channels"}
    sizes["transformer_depth_output"] = list(sizes["transformer_depth_output"])
    sizes["transformer_depth"] = list(sizes["transformer_depth"])
    network = comfy.cldm.cldm.ControlNet(**sizes, num_heads=8, hint_channels=3, dtype=torch.float32)
    randomise(network)
    net = comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))
    plain = edit.sample(steps=1)
    net.set_cond_hint(torch.rand(1, 3, 256, 320), 0.5, (0.0, 1.0))
    edit.positive = prompt("sd15", 9, 1, control=net, control_apply_to_uncond=True)
    assert not torch.allclose(edit.sample(steps=1), plain)
    assert edit.replay_error() <= CLOSE and edit.recording_error() <= CLOSE


def test_free_u(edit: UNetEdit, host: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(host.load_custom_node(str(Path(host.__file__).parent / "comfy_extras" / "nodes_freelunch.py")))
    (model,) = edit.pack.call("FreeU_V2", edit.model, 1.3, 1.4, 0.9, 0.2)
    check_full(edit, model, "FreeU_V2 (output_block_patch) works on whole feature maps", caplog)


def test_merged_tokens(edit: UNetEdit, caplog: pytest.LogCaptureFixture) -> None:
    """As token merging, which looks at all tokens before the self-attention."""
    model = edit.model.clone()
    model.set_model_attn1_patch(lambda n, k, v, options: (n - n.mean(1, keepdim=True), k, v))
    check_full(edit, model, "attn1_patch", caplog)


def test_replaced_self_attention(edit: UNetEdit, caplog: pytest.LogCaptureFixture) -> None:
    model = edit.model.clone()
    model.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0)
    check_full(edit, model, "replaces the model's attn1", caplog)


def test_an_anchor_that_does_not_fit(
    edit: UNetEdit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(edit.pack.part("lazydiff.cache.kv_cache"), "MEGABYTE", 1)
    size = edit.pack.part("nodes.host.unet_sampling").unet_bytes(edit.model, edit.context())
    check_full(edit, None, "memory limit", caplog, limit=size)  # of the two prompts' anchor, a half


def test_out_of_memory_while_recording(
    edit: UNetEdit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import comfy.model_management as mm

    def fail(*args: Any) -> None:
        raise mm.OOM_EXCEPTION("CUDA out of memory")

    monkeypatch.setattr(edit.pack.part("lazydiff.cache.kv_cache").CacheWriter, "keep_map", fail)
    check_full(edit, None, "not enough memory", caplog)


def test_set_area_computes_its_part_whole(edit: UNetEdit, pack: Pack) -> None:
    """Next to a prompt that stays lazy."""
    (area,) = pack.call("ConditioningSetArea", prompt("sd15", 9, 3), 128, 128, 64, 64, 1.0)
    edit.positive = [*edit.positive, *area]
    sigmas = edit.sigmas(2)[1:]
    stock, lazy = edit.sample(sigmas=sigmas), edit.attach(edit.context(reuse=True))
    for _ in range(2):  # the second goes on from what the first has recorded
        out = edit.sample(lazy, sigmas=sigmas)
        assert (out - stock)[edit.hole].abs().max() <= CLOSE * stock[edit.hole].abs().max()
