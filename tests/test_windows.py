"""The windowed encoder against attention to everything, with weights that are found token by token.

Tolerance: fp32 sums of some hundred terms of order one, taken in another order, differ by some 1e-6; hence 1e-5.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from test_networks import SMALL, TINY, random_mask
from torch import Tensor

from lazydiff.networks.encoder import ContextEncoder
from lazydiff.networks.layers import CrossAttention, explicit_attention, sdpa
from lazydiff.networks.windows import Windows, windowed_attention
from lazydiff.tokens import HoleTokens

close = dict(atol=1e-5, rtol=0.0)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def seen_from(place: tuple[int, int], grid: tuple[int, int], size: int) -> tuple[list[int], list[list[int]]]:
    """Which tokens a token sees one by one, and which ones in each of its groups."""

    def near(ours: int, theirs: int, side: int) -> bool:
        last = -(-side // size) - 1
        middle = min(max(ours // size, 1), max(last - 1, 1))  # a window at the edge sees one more on its other side
        return abs(theirs // size - middle) <= 1

    single: list[int] = []
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (y, x) in enumerate(product(*map(range, grid))):
        if near(place[0], y, grid[0]) and near(place[1], x, grid[1]):
            single.append(number)
        else:
            groups.setdefault((y // size, x // size), []).append(number)
    return single, list(groups.values())


def one_by_one(attend: CrossAttention, x: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Each token alone: a group is one key and one value, and its score counts once for every token in it."""
    keys, values = attend.keys_values(x)
    out = []
    for number, place in enumerate(product(*map(range, grid))):
        single, groups = seen_from(place, grid, size)
        k, v = (
            torch.stack([z[:, :, i] for i in single] + [z[:, :, group].mean(2) for group in groups], dim=2)
            for z in (keys, values)
        )
        times = torch.tensor([1] * len(single) + [len(group) for group in groups])
        k, v = (z.repeat_interleave(times, dim=2) for z in (k, v))
        out.append(attend(x[:, number : number + 1], (k, v)))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("attention", [sdpa, explicit_attention])
@pytest.mark.parametrize(
    "grid, size", [((12, 12), 3), ((8, 12), 2), ((7, 9), 2), ((5, 13), 3), ((2, 9), 2), ((5, 4), 8), ((9, 9), 1)]
)
def test_windows_equal_one_token_at_a_time(grid, size, attention):
    """Also where windows do not fill the canvas, or it is one window wide."""
    torch.manual_seed(0)
    attend = CrossAttention(24, 2, attention=attention)
    x = 3 * torch.randn(2, grid[0] * grid[1], 24)
    expected = one_by_one(attend, x, grid, size)
    ours = windowed_attention(attend, x, Windows.of(grid, size, x.device))
    torch.testing.assert_close(ours, expected, **close)
    if size == 1:  # a group of one token is that token
        torch.testing.assert_close(ours, attend(x, attend.keys_values(x)), **close)
    elif max(grid) > 3 * size:
        assert (ours - attend(x, attend.keys_values(x))).abs().max() > 1e-3


@pytest.mark.parametrize("grid, size", [((12, 12), 3), ((10, 7), 2)])
def test_every_token_is_seen_once(grid, size):
    windows = Windows.of(grid, size, torch.device("cpu"))
    counts = windows.bias.exp().sum(-1)
    torch.testing.assert_close(counts, torch.full_like(counts, grid[0] * grid[1]))
