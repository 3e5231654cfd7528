"""Encoder and decoder against diffusers' PixArt, a plain transformer, and their own slow ways of computing.

Tolerances: fp32 sums of a few hundred terms of order one, taken in another order, differ by some 1e-6; hence 1e-5.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from tiny_networks import ROTARY, SMALL, TINY, plain_attention, random_inputs, random_mask, random_prompts
from torch import Tensor, nn

from lazydiff.core.tokens import HoleTokens, patchify, unpatchify
from lazydiff.model.config import PIXART_1024, PRESETS, NetworkConfig
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.layers import position_table, sdpa
from lazydiff.model.pixart_weights import from_pixart

REAL_WIDTH = replace(PIXART_1024, decoder_depth=1, text_width=32)

close = dict(atol=1e-5, rtol=0.0)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers'


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def stock_pixart(config: NetworkConfig) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.width // config.heads, in_channels=config.channels,
        out_channels=2 * config.channels, num_layers=config.decoder_depth, cross_attention_dim=config.width,
        sample_size=config.canvas // config.cell, patch_size=config.patch, caption_channels=config.text_width,
        interpolation_scale=config.interpolation, use_additional_conditions=config.micro_conditions,
    ).eval()  # fmt: skip


def twins(config: NetworkConfig) -> tuple[LazyDecoder, PixArtTransformer2DModel]:
    """A decoder that ignores its context, and diffusers' model of the same weights."""
    stock, decoder = stock_pixart(config), LazyDecoder(config).eval()
    left_out = decoder.load_state_dict(from_pixart(stock.state_dict()), strict=False)
    assert left_out.missing_keys == ["ctx_fuse.weight", "ctx_fuse.bias"] and not left_out.unexpected_keys
    decoder.ignore_context()
    return decoder, stock


def run_stock(stock, config, latent, t, text, text_mask, attention_mask=None) -> Tensor:
    h, w = (side * config.cell for side in latent.shape[-2:])
    size = torch.tensor([[h, w]]).expand(len(latent), -1).float()
    conditions = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]} if config.micro_conditions else None
    return stock(
        latent, encoder_hidden_states=text, encoder_attention_mask=text_mask, timestep=t, added_cond_kwargs=conditions,
        attention_mask=attention_mask,
    ).sample  # fmt: skip


@pytest.mark.parametrize("grid", [(6, 6), (4, 9), (8, 3)], ids=str)
@pytest.mark.parametrize("micro", [True, False], ids=["micro", "plain"])
@pytest.mark.parametrize("lengths", [(12, 12), (3, 12)], ids=["full prompts", "padded prompts"])
def test_all_tokens_equal_stock_pixart(grid, micro, lengths):
    config = replace(TINY, micro_conditions=micro)
    decoder, stock = twins(config)
    latent, t = torch.randn(2, 4, 2 * grid[0], 2 * grid[1]), torch.tensor([3, 987])
    text, text_mask = random_prompts(config, *lengths)

    hole = HoleTokens.from_grid_mask(torch.ones(2, *grid, dtype=torch.bool))
    keys = decoder.text_keys(text, text_mask)
    ours = unpatchify(decoder(patchify(latent, 2), t, keys, hole), grid, 2)
    theirs = run_stock(stock, config, latent, t, text, text_mask)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, **close)


def test_all_tokens_equal_stock_pixart_at_real_width():
    """16 heads of 72 and positions that are interpolated by 2, in one layer."""
    decoder, stock = twins(REAL_WIDTH)
    latent, t = torch.randn(1, 4, 8, 12), torch.tensor([500])
    text, text_mask = random_prompts(REAL_WIDTH, 5)
    hole = HoleTokens.from_grid_mask(torch.ones(1, 4, 6, dtype=torch.bool))
    ours = unpatchify(decoder(patchify(latent, 2), t, decoder.text_keys(text), hole), (4, 6), 2)
    torch.testing.assert_close(ours, run_stock(stock, REAL_WIDTH, latent, t, text, text_mask), **close)


@pytest.mark.parametrize("preset, sample_size", [("pixart-512", 64), ("pixart-1024", 128), ("pixart-2048", 256)])
@pytest.mark.parametrize("grid", [(32, 32), (20, 48)], ids=str)
def test_positions_are_those_of_diffusers(preset, sample_size, grid):
    config = PRESETS[preset]
    theirs = get_2d_sincos_pos_embed(
        config.width, grid, base_size=sample_size // 2, interpolation_scale=max(sample_size // 64, 1), output_type="pt"
    )
    ours = position_table(grid, config.width, config.grid, config.interpolation, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-6, rtol=0)  # both round from fp64


@pytest.mark.parametrize("n", [1, 5, 24])
def test_holes_equal_stock_pixart_that_attends_to_holes_alone(n):
    grid = (4, 6)
    decoder, stock = twins(TINY)
    mask = random_mask(grid, n, n)
    hole = HoleTokens.from_grid_mask(mask)
    latent, t = torch.randn(2, 4, 8, 12), torch.tensor([40, 700])
    text, text_mask = random_prompts(TINY, 12, 4)

    ours = decoder(hole.gather(patchify(latent, 2)), t, decoder.text_keys(text, text_mask), hole)
    dense = run_stock(stock, TINY, latent, t, text, text_mask, attention_mask=mask.flatten(1).float())
    torch.testing.assert_close(ours, hole.gather(patchify(dense, 2)), **close)


@pytest.mark.parametrize("config", [TINY, SMALL, ROTARY], ids=["patch 2", "patch 1", "rotary"])
def test_holes_with_context_equal_all_tokens_that_attend_to_holes_alone(config):
    grid = (4, 6)
    mask = random_mask(grid, 7, 7)
    hole = HoleTokens.from_grid_mask(mask)
    everything = HoleTokens.from_grid_mask(torch.ones_like(mask))

    def to_holes(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        holes = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).flatten(1)[:, None, None]
        return plain_attention(q, k, v, holes if k.shape[2] == hole.total else key_mask)

    lazy, dense = LazyDecoder(config).eval(), LazyDecoder(config, attention=to_holes).eval()
    dense.load_state_dict(lazy.state_dict())
    x, t, context = random_inputs(config, everything)
    text = lazy.text_keys(*random_prompts(config, 12, 4))
    ours = lazy(hole.gather(x), t, text, hole, hole.gather(context))
    torch.testing.assert_close(ours, hole.gather(dense(x, t, text, everything, context)), **close)
    without = lazy(hole.gather(x), t, text, hole)
    assert (ours - without).abs().max() > 0.01  # the context is read
    assert torch.equal(without, lazy(hole.gather(x), t, text, hole, torch.zeros_like(hole.gather(context))))


@pytest.mark.parametrize("counts", [(3, 24, 1), (0, 6)], ids=str)
def test_ragged_batch_equals_one_by_one(counts):
    grid, b = (4, 6), len(counts)
    encoder, decoder = ContextEncoder(TINY).eval(), LazyDecoder(TINY).eval()
    mask = random_mask(grid, *counts)
    hole = HoleTokens.from_grid_mask(mask)
    latent = torch.randn(b, 4, 8, 12)
    pixels = mask[:, None].float().repeat_interleave(16, 2).repeat_interleave(16, 3)
    x, t, _ = random_inputs(TINY, hole)
    text, text_mask = random_prompts(TINY, *range(12, 12 - 4 * b, -4))

    context = encoder(latent, pixels, hole)
    together = decoder(x, t, decoder.text_keys(text, text_mask), hole, context)
    assert together.isfinite().all()  # of a row without holes too: a loss would spread its NaN
    for i, count in enumerate(counts):
        if not count:
            continue
        one, length = HoleTokens.from_grid_mask(mask[i : i + 1]), int(text_mask[i].sum())
        alone = encoder(latent[i : i + 1], pixels[i : i + 1], one)
        torch.testing.assert_close(context[i : i + 1, :count], alone, **close)
        keys = decoder.text_keys(text[i : i + 1, :length])
        torch.testing.assert_close(
            together[i : i + 1, :count], decoder(x[i : i + 1, :count], t[i : i + 1], keys, one, alone), **close
        )


def test_empty_mask_gives_no_tokens():
    hole = HoleTokens.from_grid_mask(torch.zeros(2, 4, 6, dtype=torch.bool))
    encoder, decoder = ContextEncoder(TINY).eval(), LazyDecoder(TINY).eval()
    context = encoder(torch.randn(2, 4, 8, 12), torch.zeros(2, 1, 64, 96), hole)
    x, t, _ = random_inputs(TINY, hole)
    assert decoder(x, t, decoder.text_keys(*random_prompts(TINY, 4, 4)), hole, context).shape == (2, 0, 32)


def test_text_keys_are_computed_once_and_stay():
    decoder = LazyDecoder(TINY).eval()
    hole = HoleTokens.from_grid_mask(random_mask((4, 6), 5, 5))
    x, _, context = random_inputs(TINY, hole)
    text, text_mask = random_prompts(TINY, 12, 4)
    cached = decoder.text_keys(text, text_mask)
    for t in (torch.tensor([900, 900]), torch.tensor([10, 400])):
        fresh = decoder.text_keys(text, text_mask)
        assert torch.equal(decoder(x, t, cached, hole, context), decoder(x, t, fresh, hole, context))


def test_repeated_text_keys_are_those_of_repeated_prompts():
    decoder = LazyDecoder(TINY).eval()
    text, text_mask = random_prompts(TINY, 12, 4)
    repeated = decoder.text_keys(text, text_mask).repeat(2)
    expected = decoder.text_keys(text.repeat_interleave(2, 0), text_mask.repeat_interleave(2, 0))
    assert torch.equal(repeated.mask, expected.mask)
    torch.testing.assert_close(repeated.blocks, expected.blocks, **close)


def test_permuting_hole_tokens_permutes_the_prediction():
    decoder = LazyDecoder(TINY).eval()
    hole = HoleTokens.from_grid_mask(random_mask((4, 6), 9))
    x, t, context = random_inputs(TINY, hole)
    text, order = decoder.text_keys(*random_prompts(TINY, 6)), torch.randperm(9)
    permuted = decoder(x[:, order], t, text, replace(hole, index=hole.index[:, order]), context[:, order])
    torch.testing.assert_close(permuted, decoder(x, t, text, hole, context)[:, order], **close)


@pytest.mark.parametrize("config", [TINY, SMALL], ids=["patch 2", "patch 1"])
@pytest.mark.parametrize("counts", [(24, 24), (5, 5), (1, 9)], ids=str)
def test_encoder_equals_a_plain_transformer_on_all_tokens(config, counts):
    """Torch's own encoder layers compute every token of every block; the hole's are gathered at the end."""
    grid = (4, 6)
    encoder = ContextEncoder(config).eval()
    mask = random_mask(grid, *counts)
    hole = HoleTokens.from_grid_mask(mask)
    latent = torch.randn(2, config.channels, grid[0] * config.patch, grid[1] * config.patch)
    pixels = (torch.rand(2, 1, grid[0] * config.token, grid[1] * config.token) < 0.5).float()

    x = torch.cat((latent, F.conv2d(pixels, encoder.mask_down.weight, encoder.mask_down.bias, stride=8)), dim=1)
    x = F.conv2d(x, encoder.patch_embed.weight, encoder.patch_embed.bias, stride=config.patch, padding=1)
    x = x.flatten(2).mT + position_table(
        grid, config.width, config.grid, config.interpolation, torch.device("cpu"), torch.float32
    )
    for block in encoder.blocks:
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, dropout=0.0, layer_norm_eps=1e-6, batch_first=True,
            norm_first=True, activation=lambda x: F.gelu(x, approximate="tanh"),
        ).eval()  # fmt: skip
        attn = block.attn
        layer.load_state_dict({
            "self_attn.in_proj_weight": torch.cat((attn.q_linear.weight, attn.kv_linear.weight)),
            "self_attn.in_proj_bias": torch.cat((attn.q_linear.bias, attn.kv_linear.bias)),
            "self_attn.out_proj.weight": attn.proj.weight, "self_attn.out_proj.bias": attn.proj.bias,
            "linear1.weight": block.mlp.fc1.weight, "linear1.bias": block.mlp.fc1.bias,
            "linear2.weight": block.mlp.fc2.weight, "linear2.bias": block.mlp.fc2.bias,
            "norm1.weight": block.norm1.weight, "norm1.bias": block.norm1.bias,
            "norm2.weight": block.norm2.weight, "norm2.bias": block.norm2.bias,
        })  # fmt: skip
        x = layer(x)
    expected = hole.gather(F.layer_norm(x, (config.width,), encoder.norm.weight, encoder.norm.bias, eps=1e-6))
    ours = encoder(latent, pixels, hole)
    valid = hole.valid[..., None]
    torch.testing.assert_close(ours * valid, expected * valid, **close)


def test_injected_layers_and_attention_do_all_the_work():
    """A host's layer classes hold every weight and are called themselves, never their weight behind their back."""
    calls: Counter[nn.Module] = Counter()
    attended: list[int] = []

    def counting(base: type[nn.Module]) -> type[nn.Module]:
        def forward(self: nn.Module, *args: Tensor) -> Tensor:
            calls[self] += 1
            return base.forward(self, *args)

        return type(base.__name__, (base,), {"forward": forward})

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        attended.append(k.shape[2])
        return sdpa(q, k, v, mask)

    operations = SimpleNamespace(**{base.__name__: counting(base) for base in (nn.Linear, nn.Conv2d, nn.LayerNorm)})
    encoder = ContextEncoder(TINY, operations, attention).eval()
    decoder = LazyDecoder(TINY, operations, attention).eval()
    hole = HoleTokens.from_grid_mask(random_mask((4, 6), 5))
    x, t, _ = random_inputs(TINY, hole)
    text = decoder.text_keys(*random_prompts(TINY, 7))
    decoder(x, t, text, hole, encoder(torch.randn(1, 4, 8, 12), torch.ones(1, 1, 64, 96), hole))

    assert attended == [24] * TINY.encoder_depth + [5, 7] * TINY.decoder_depth
    for network in (encoder, decoder):
        for name, module in network.named_modules():
            if isinstance(module, tuple(vars(operations).values())):
                assert calls[module], f"{name} was bypassed"
            else:
                own = [key for key, _ in module.named_parameters(recurse=False)]
                assert set(own) <= {"scale_shift_table"}, f"{name} holds {own} outside of an injected layer"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("config", [TINY, ROTARY], ids=["added", "rotary"])
def test_networks_keep_their_number_type(config, dtype):
    encoder, decoder = ContextEncoder(config, dtype=dtype).eval(), LazyDecoder(config, dtype=dtype).eval()
    assert {p.dtype for network in (encoder, decoder) for p in network.parameters()} == {dtype}
    hole = HoleTokens.from_grid_mask(random_mask((4, 6), 5))
    x, t, _ = random_inputs(config, hole)
    text, latent = random_prompts(config, 7)[0].to(dtype), torch.randn(1, 4, 8, 12, dtype=dtype)
    context = encoder(latent, torch.ones(1, 1, 64, 96), hole)
    ours = decoder(x.to(dtype), t, decoder.text_keys(text), hole, context)
    assert context.dtype == ours.dtype == dtype
    # Against the same weights in fp32; bf16 has 8 bits, and an error per layer of 2^-8 of values of order one.
    wide = LazyDecoder(config).eval()
    wide.load_state_dict(decoder.state_dict())
    expected = wide(x, t, wide.text_keys(text.float()), hole, context.float())
    atol = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ours.float(), expected, atol=atol, rtol=0)


def test_initialised_networks_predict_nothing_yet_and_learn():
    """The output layer starts at zero; one step later gradients reach the encoder through the added layer."""
    encoder, decoder = ContextEncoder(TINY), LazyDecoder(TINY)
    encoder.initialise()
    decoder.initialise()
    hole = HoleTokens.from_grid_mask(random_mask((4, 6), 5))
    x, t, _ = random_inputs(TINY, hole)
    text, text_mask = random_prompts(TINY, 7)
    with torch.enable_grad():
        for step in range(2):
            context = encoder(torch.randn(1, 4, 8, 12), torch.ones(1, 1, 64, 96), hole)
            prediction = decoder(x, t, decoder.text_keys(text, text_mask), hole, context)
            assert prediction.any() == (step > 0)
            (prediction - 1).square().mean().backward()
            torch.optim.SGD(decoder.final_layer.parameters(), lr=0.1).step()
    assert all(p.grad is not None and p.grad.any() for p in encoder.patch_embed.parameters())


@pytest.mark.parametrize("config", [TINY, ROTARY], ids=["added", "rotary"])
def test_tokens_that_attend_to_kept_keys_are_those_of_a_full_pass(config):
    """One kv_hook watches a pass over all tokens, which stays as it is bit for bit; one adds what it saw to a pass over
    some of them."""
    decoder = LazyDecoder(config).eval()
    everything = HoleTokens.everything(2, (4, 6))
    some = HoleTokens.from_grid_mask(random_mask((4, 6), 5)).tile(2)
    x, t, context = random_inputs(config, everything)
    text = decoder.text_keys(*random_prompts(config, 6, 4))
    rest = ~torch.isin(everything.index[0], some.index[0])
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((k[..., rest, :], v[..., rest, :]))
        return k, v

    def extend(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        kept_k, kept_v = seen.pop(0)
        return torch.cat((kept_k, k), dim=-2), torch.cat((kept_v, v), dim=-2)

    expected = decoder(x, t, text, everything, context)
    assert torch.equal(decoder(x, t, text, everything, context, watch), expected)
    assert [k.shape for k, _ in seen] == [(2, config.heads, 19, config.width // config.heads)] * config.decoder_depth
    ours = decoder(some.gather(x), t, text, some, some.gather(context), extend)
    torch.testing.assert_close(ours, some.gather(expected), **close)
