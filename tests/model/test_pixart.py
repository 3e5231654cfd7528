"""Public PixArt-α weights go into the decoder and come out again, bit for bit, in each of their layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from lazydiff.model.config import NetworkConfig
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.pixart_weights import from_pixart, load_pixart, to_pixart

CONFIG = NetworkConfig(
    canvas=128, cell=8, channels=4, patch=2, width=24, heads=2, decoder_depth=3, encoder_depth=1, text_width=16,
)  # fmt: skip
CONFIGS = {
    "1024 px": CONFIG,
    "512 px": replace(CONFIG, micro_conditions=False),
    "12 blocks": replace(CONFIG, decoder_depth=12),
}
LAYOUTS = ["original", "comfy", "diffusers"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers'


def weights(config: NetworkConfig = CONFIG, stock: bool = True) -> dict[str, Tensor]:
    """A decoder's state dict; a stock one lacks the added layer."""
    state = LazyDecoder(config).state_dict()
    return {key: value for key, value in state.items() if not (stock and key.startswith("ctx_fuse."))}


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stock", [True, False], ids=["stock", "with ctx_fuse"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_round_trip_is_exact(config, stock, layout):
    state = weights(config, stock)
    there = to_pixart(state, layout)
    assert_same(from_pixart(there), state)
    assert_same(to_pixart(from_pixart(there), layout), there)


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_layouts_lead_to_each_other(first, second):
    state = {key: value.half() for key, value in weights().items()}
    assert_same(to_pixart(from_pixart(to_pixart(state, first)), second), to_pixart(state, second))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_diffusers_takes_what_is_written(config):
    stock = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=config.decoder_depth, cross_attention_dim=24,
        sample_size=16, caption_channels=16, use_additional_conditions=config.micro_conditions,
    )  # fmt: skip
    state = weights(config)
    stock.load_state_dict(to_pixart(state, "diffusers"))
    assert_same(from_pixart(stock.state_dict()), state)


def test_original_names():
    """As in the published files; layers in threes and twos are stacked in the order query, key, value."""
    state = weights()
    original, comfy, parts = (to_pixart(state, layout) for layout in LAYOUTS)
    for name, shape in {
        "x_embedder.proj.weight": (24, 4, 2, 2),
        "t_embedder.mlp.2.bias": (24,),
        "csize_embedder.mlp.0.weight": (8, 256),
        "ar_embedder.mlp.2.weight": (8, 8),
        "t_block.1.weight": (144, 24),
        "y_embedder.y_proj.fc1.weight": (24, 16),
        "blocks.2.scale_shift_table": (6, 24),
        "blocks.2.attn.qkv.weight": (72, 24),
        "blocks.2.cross_attn.kv_linear.bias": (48,),
        "blocks.2.mlp.fc1.weight": (96, 24),
        "final_layer.linear.weight": (32, 24),
        "final_layer.scale_shift_table": (2, 24),
    }.items():
        assert original[name].shape == comfy["model.diffusion_model." + name].shape == shape
    block = "transformer_blocks.1."
    for i, letter in enumerate("qkv"):
        rows = slice(24 * i, 24 * (i + 1))
        assert torch.equal(parts[f"{block}attn1.to_{letter}.weight"], state["blocks.1.attn.qkv.weight"][rows])
    for i, letter in enumerate("kv"):
        rows = slice(24 * i, 24 * (i + 1))
        assert torch.equal(parts[f"{block}attn2.to_{letter}.bias"], state["blocks.1.cross_attn.kv_linear.bias"][rows])


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the buffers of the authors' files."""
    return state | {"y_embedder.y_embedding": torch.randn(120, 16), "pos_embed": torch.randn(1, 64, 24)}


@pytest.mark.parametrize(
    "wrap",
    [
        published,
        lambda state: {"state_dict": published(state), "epoch": 3},
        lambda state: {"diffusion_model." + key: value for key, value in published(state).items()},
        lambda state: (
            {"model.diffusion_model." + key: value for key, value in published(state).items()}
            | {"vae.encoder.weight": torch.ones(1), "text_encoders.t5.weight": torch.ones(1)}
        ),
        lambda state: to_pixart(state, "diffusers") | {"caption_projection.y_embedding": torch.randn(120, 16)},
    ],
    ids=["buffers", "state_dict", "prefix", "comfy checkpoint", "diffusers"],
)
def test_wrappings_are_taken_off(wrap):
    state = weights()
    assert_same(from_pixart(wrap(state)), state)


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    assert key in state
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: {}, "not a PixArt-α state dict: found no keys; expected t_block.1.weight"),
        (lambda s: {"down_blocks.0.weight": torch.ones(1)}, "found down_blocks.0.weight; expected"),
        (lambda s: without(s, "blocks.1.attn.qkv.bias"), "lacks blocks.1.attn.qkv.bias"),
        (lambda s: without(s, "ar_embedder.mlp.0.weight"), "lacks ar_embedder.mlp.0.weight"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("blocks.1.")}, "lacks .* and 12 more keys"),
        (lambda s: s | {"blocks.0.attn.q_norm.weight": torch.ones(1)}, "unexpected blocks.0.attn.q_norm.weight"),
        (lambda s: s | {"ctx_fuse.bias": torch.ones(1)}, "lacks ctx_fuse.weight"),
        (lambda s: without(to_pixart(s, "diffusers"), "transformer_blocks.0.attn2.to_v.bias"), "lacks transformer_bl"),
        (lambda s: to_pixart(s, "diffusers") | {"pos_embedder": torch.ones(1)}, "unexpected pos_embedder"),
    ],
)
def test_other_state_dicts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_pixart(change(weights()))


def test_only_a_decoder_is_written():
    with pytest.raises(ValueError, match="not a PixArt-α state dict"):
        to_pixart({"mask_down.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="choose original, comfy or diffusers"):
        to_pixart(weights(), "comfyui")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stock", [True, False], ids=["stock", "with ctx_fuse"])
def test_load_file(tmp_path, layout, stock):
    state, decoder = weights(CONFIG, stock), LazyDecoder(CONFIG)
    save_file(to_pixart(state, layout), tmp_path / "pixart.safetensors")
    assert_same(load_file(tmp_path / "pixart.safetensors"), to_pixart(state, layout))
    load_pixart(decoder, tmp_path / "pixart.safetensors")
    identity = {"ctx_fuse.weight": torch.eye(24, 48), "ctx_fuse.bias": torch.zeros(24)}
    assert_same(decoder.state_dict(), state | identity if stock else state)


@pytest.mark.parametrize(
    "config, message",
    [
        (CONFIGS["512 px"], "first ar_embedder.mlp.0.bias: found None, expected"),
        (replace(CONFIG, decoder_depth=2), "first blocks.2.attn.proj.bias: found None, expected"),
        (replace(CONFIG, text_width=20), r"1 parameters differ, .*fc1.weight: found \(24, 20\), expected \(24, 16\)"),
    ],
)
def test_a_file_of_other_sizes_changes_nothing(tmp_path, config, message):
    decoder = LazyDecoder(CONFIG)
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    save_file(weights(config), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        load_pixart(decoder, tmp_path / "other.safetensors")
    assert_same(decoder.state_dict(), before)
