"""The windowed encoder against one that attends token by token, with what each of them sees written out.

Tolerance: fp32 sums of some hundred terms of order one, taken in another order, differ by some 1e-6; hence 1e-5.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from lazydiff.networks.windows import Windows, windowed_attention
from samples import scene
from test_networks import TINY, plain_attention, random_mask
from torch import Tensor

from lazydiff.core.tokens import HoleTokens
from lazydiff.model import context_encoder as encoder_module
from lazydiff.model.checkpoint import load_checkpoint, save_checkpoint
from lazydiff.model.config import PRESETS
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.layers import CrossAttention, explicit_attention, sdpa
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import encode, sample

close = dict(atol=1e-5, rtol=0.0)


def seen_from(place: tuple[int, int], grid: tuple[int, int], size: int, keys: Tensor) -> list[list[int]]:
    """The tokens of each key of a token: near ones alone; of a distant window those alone whose keys [h·w, width] are
    farthest from the mean, and the others together."""

    def near(ours: int, theirs: int, side: int) -> bool:
        last = -(-side // size) - 1
        middle = min(max(ours // size, 1), max(last - 1, 1))  # a window at the edge sees one more on its other side
        return abs(theirs // size - middle) <= 1

    single: list[list[int]] = []
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (y, x) in enumerate(product(*map(range, grid))):
        if near(place[0], y, grid[0]) and near(place[1], x, grid[1]):
            single.append([number])
        else:
            groups.setdefault((y // size, x // size), []).append(number)
    for group in groups.values():
        distance = (keys[group] - keys[group].mean(0)).square().sum(1)
        order = [group[i] for i in distance.argsort(descending=True)]
        alone = max(size**2 // 16, 1)
        single += [[token] for token in order[:alone]]
        single += [order[alone:]] if len(group) > alone else []
    return single


def one_by_one(attend: CrossAttention, x: Tensor, windows: Windows) -> Tensor:
    """Each token alone; a group is one key and one value, given as many times as it has tokens."""
    if len(x) > 1:
        return torch.cat([one_by_one(attend, row[None], windows) for row in x])
    keys_values = attend.keys_values(x)
    out = []
    for number, place in enumerate(product(*map(range, windows.grid))):
        seen = seen_from(place, windows.grid, windows.size, keys_values[0][0].transpose(0, 1).flatten(1))
        k, v = (
            torch.cat([z[:, :, key].mean(2, keepdim=True).expand(-1, -1, len(key), -1) for key in seen], dim=2)
            for z in keys_values
        )
        out.append(attend(x[:, number : number + 1], (k, v)))
    return torch.cat(out, dim=1)


GRIDS = [((8, 10), 2), ((7, 9), 2), ((5, 13), 3), ((7, 23), 6), ((2, 9), 2), ((5, 4), 8), ((6, 6), 1)]


@pytest.mark.parametrize("attention", [sdpa, explicit_attention])
@pytest.mark.parametrize("grid, size", GRIDS)
def test_windows_equal_one_token_at_a_time(grid, size, attention):
    """Also where windows stick out of the canvas, or it is one window wide; and so do their gradients."""
    attend = CrossAttention(16, 2, attention=attention)
    x = torch.randn(2, grid[0] * grid[1], 16).mul(3).requires_grad_()
    windows = Windows.of(grid, size, x.device)
    ours, expected = windowed_attention(attend, x, windows), one_by_one(attend, x, windows)
    torch.testing.assert_close(ours, expected, **close)
    weight = torch.randn_like(ours)
    gradients = (torch.autograd.grad((each * weight).sum(), x)[0] for each in (ours, expected))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=0.0)  # sums of ten times as many terms
    exact = attend(x, attend.keys_values(x))
    if size == 1 or max(grid) <= 3 * size:  # a group of one token is that token; or there are no groups
        torch.testing.assert_close(ours, exact, **close)
    else:
        assert (ours - exact).abs().max() > 1e-3


def encoders(grid: tuple[int, int], window: int) -> tuple[ContextEncoder, ContextEncoder, tuple[Tensor, ...]]:
    """One with windows, one of the same weights without, and a batch with holes of different sizes."""
    windowed, exact = ContextEncoder(replace(TINY, encoder_window=window)).eval(), ContextEncoder(TINY).eval()
    exact.load_state_dict(windowed.state_dict())
    mask = random_mask(grid, 3, 20)
    pixels = mask[:, None].float().repeat_interleave(16, 2).repeat_interleave(16, 3)
    return windowed, exact, (torch.randn(2, 4, 2 * grid[0], 2 * grid[1]), pixels, HoleTokens.from_grid_mask(mask))


@torch.no_grad()
def test_encoder_equals_one_token_at_a_time(monkeypatch):
    windowed, exact, inputs = encoders((7, 9), 2)
    ours = windowed(*inputs)
    assert (ours - exact(*inputs)).abs().max() > 1e-3
    monkeypatch.setattr(encoder_module, "windowed_attention", one_by_one)
    torch.testing.assert_close(ours, windowed(*inputs), **close)


@torch.no_grad()
@pytest.mark.parametrize("window", [0, 3, 9])
def test_encoder_is_exact_where_everything_is_near(window):
    windowed, exact, inputs = encoders((7, 9), window)
    assert torch.equal(windowed(*inputs), exact(*inputs))


@torch.no_grad()
def test_injected_attention_never_sees_the_whole_canvas():
    keys: list[int] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        keys.append(k.shape[2])
        return plain_attention(q, k, v) if mask is None else explicit_attention(q, k, v, mask)

    config = replace(TINY, encoder_window=2)
    encoder = ContextEncoder(config, attention=attention).eval()
    hole = HoleTokens.from_grid_mask(random_mask((20, 20), 5))
    encoder(torch.randn(1, 4, 40, 40), torch.ones(1, 1, 320, 320), hole)
    # Near tokens, and two keys for each of all windows; once for each of ten rows of windows.
    assert keys == [9 * 4 + 2 * 100] * 10 * config.encoder_depth


def test_the_preset_of_4096_px_has_windows():
    assert PRESETS["pixart-4096"].grid > 3 * PRESETS["pixart-4096"].encoder_window > 0


def test_the_same_model_reads_contexts_of_both(model: LazyDiffusion, tmp_path):
    """A checkpoint keeps the setting, and the name by which contexts know their model is the same without it."""
    save_checkpoint(model, tmp_path / "exact.safetensors", torch.float32)
    exact = load_checkpoint(tmp_path / "exact.safetensors")
    exact.config = replace(exact.config, network=replace(exact.config.network, encoder_window=2))
    save_checkpoint(exact, tmp_path / "windowed.safetensors", torch.float32)
    windowed = load_checkpoint(tmp_path / "windowed.safetensors")
    assert exact.encoder.window == 0 and windowed.encoder.window == 2
    image, mask, caption = scene(3)
    contexts = [encode(each, image, mask) for each in (exact, windowed)]
    assert contexts[0].model == contexts[1].model == model.fingerprint
    assert not torch.equal(contexts[0].tokens, contexts[1].tokens)
    ours, theirs = (sample(each, contexts[1], [caption], [1]) for each in (exact, windowed))
    assert torch.equal(ours, theirs)
