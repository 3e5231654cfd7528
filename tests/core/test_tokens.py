"""Hole tokens against loops over places, and the order of values inside a token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lazydiff.core.tokens import HoleTokens, channels_first, patchify, unpatchify

GRID = (5, 7)


def random_masks(*fractions: float) -> Tensor:
    """[B, h, w] bool, each with about that fraction of holes; 0 is empty and 1 is full."""
    return torch.stack([torch.rand(GRID) < fraction for fraction in fractions])


def places(mask: Tensor) -> list[list[int]]:
    """Row by row, the flat places of the holes: what `index` should list."""
    return [[y * w + x for y in range(h) for x in range(w) if m[y, x]] for m in mask for h, w in [m.shape]]


MASKS = pytest.mark.parametrize(
    "fractions", [(0.4,), (1.0,), (0.0,), (0.2, 0.9), (0.0, 0.5, 1.0), (0.0, 0.0)], ids=lambda f: "-".join(map(str, f))
)


@MASKS
def test_index_lists_holes_in_row_order(fractions):
    mask = random_masks(*fractions)
    hole, expected = HoleTokens.from_grid_mask(mask), places(mask)
    assert hole.count == max(map(len, expected)) and hole.total == 35 and hole.grid == GRID
    assert hole.index.dtype == torch.int64 and hole.valid.dtype == torch.bool
    for index, valid, row in zip(hole.index, hole.valid, expected, strict=True):
        assert index[valid].tolist() == row
        assert valid.tolist() == [True] * len(row) + [False] * (hole.count - len(row))
        assert not index[~valid].any()
    assert hole.padded == (len(set(map(len, expected))) > 1)
    assert (hole.key_mask is hole.valid) if hole.padded else (hole.key_mask is None)
    for (y, x), place in zip(hole.positions.reshape(-1, 2).tolist(), hole.index.flatten().tolist(), strict=True):
        assert y * GRID[1] + x == place


@pytest.mark.parametrize("value", [1.0, 1e-6, True])
def test_any_hole_pixel_makes_a_hole_token(value):
    """Of tokens of 4 px: a mask across the corner of four of them, and one pixel of the last."""
    mask = torch.zeros(2, 1, 12, 16, dtype=torch.tensor(value).dtype)
    mask[0, :, 3:5, 7:9], mask[1, :, 11, 15] = value, value
    hole = HoleTokens.from_mask(mask, 4)
    assert hole.grid == (3, 4) and hole.counts == (4, 1)
    assert hole.index[0].tolist() == [1, 2, 5, 6] and hole.index[1, 0] == 11


@MASKS
def test_gather_and_scatter_against_a_loop(fractions):
    mask = random_masks(*fractions)
    hole, expected = HoleTokens.from_grid_mask(mask), places(mask)
    canvas, new = torch.randn(len(mask), 35, 3), torch.randn(len(mask), hole.count, 3)
    gathered = hole.gather(canvas)
    result, before = hole.scatter(new, canvas), canvas.clone()
    reference = canvas.clone()
    for b, row in enumerate(expected):
        for i, place in enumerate(row):
            assert torch.equal(gathered[b, i], canvas[b, place])
            reference[b, place] = new[b, i]
        assert torch.equal(gathered[b, len(row) :], canvas[b, :1].expand(hole.count - len(row), -1))
    # Equality of bits also says that padding, whose index is 0, left token 0 as it was.
    assert torch.equal(result, reference)
    assert torch.equal(canvas, before)


def test_scatter_keeps_the_type_of_the_canvas():
    hole = HoleTokens.from_grid_mask(random_masks(0.5))
    assert hole.scatter(torch.randn(1, hole.count, 2), torch.zeros(1, 35, 2).half()).dtype == torch.float16


def test_gradients_reach_the_hole_and_only_the_hole():
    mask = random_masks(0.1, 0.6)
    hole = HoleTokens.from_grid_mask(mask)
    canvas = torch.randn(2, 35, 2, requires_grad=True)
    new = torch.randn(2, hole.count, 2, requires_grad=True)
    hole.scatter(new, canvas).sum().backward()
    assert torch.equal(canvas.grad, (~mask).flatten(1)[..., None].expand(-1, -1, 2).float())
    assert torch.equal(new.grad, hole.valid[..., None].expand(-1, -1, 2).float())


def test_repeat_keeps_rows_together():
    hole = HoleTokens.from_grid_mask(random_masks(0.2, 0.8)).repeat(3)
    assert hole.index.shape[0] == hole.valid.shape[0] == 6
    for tensor in (hole.index, hole.valid):
        assert torch.equal(tensor[0], tensor[2]) and torch.equal(tensor[3], tensor[5])
        assert not torch.equal(tensor[2], tensor[3])


def test_hole_tokens_are_frozen():
    hole = HoleTokens.from_grid_mask(random_masks(0.5))
    with pytest.raises(AttributeError):
        hole.padded = True


@pytest.mark.parametrize("channels, height, width, patch", [(4, 8, 8, 2), (3, 4, 10, 2), (5, 3, 4, 1), (2, 6, 3, 3)])
def test_patchify_against_a_loop(channels, height, width, patch):
    x = torch.randn(2, channels, height, width)
    tokens = patchify(x, patch)
    grid = (height // patch, width // patch)
    for y in range(grid[0]):
        for z in range(grid[1]):
            cell = x[:, :, y * patch : (y + 1) * patch, z * patch : (z + 1) * patch]
            assert torch.equal(tokens[:, y * grid[1] + z], cell.flatten(1))
    assert torch.equal(unpatchify(tokens, grid, patch), x)


def test_channels_first_against_a_loop():
    channels, patch = 3, 2
    tokens = torch.randn(2, 4, patch * patch * channels)
    result = channels_first(tokens, patch)
    for c in range(channels):
        for ph in range(patch):
            for pw in range(patch):
                ours, theirs = (c * patch + ph) * patch + pw, (ph * patch + pw) * channels + c
                assert torch.equal(result[..., ours], tokens[..., theirs])
