"""Rows of different sizes laid end to end: each token once, and rows of one size in as few groups as there can be."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tiny_networks import random_mask

from lazydiff.core.packing import Packing, groups_of
from lazydiff.core.tokens import HoleTokens

GRID = (4, 6)
BATCHES = [(3, 24, 1), (0, 6), (5, 7, 5, 0, 7, 7), (2, 9, 2, 9, 2, 9), (1, 2)]


@pytest.mark.parametrize("counts", [*BATCHES, (), (4,), (0, 0), *product(range(3), repeat=4)], ids=str)
def test_groups_are_the_rows_each_once(counts: tuple[int, ...]) -> None:
    rows = range(len(counts))
    found = [(row, group) for group in groups_of(counts) for row in rows[group.rows]]
    assert sorted(row for row, _ in found) == [row for row in rows if counts[row]]
    for row, group in found:
        assert group.tokens == counts[row] and group.size == len(rows[group.rows])


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("tiled", [True, False])
def test_rows_of_one_canvas_share_a_group(times: int, tiled: bool) -> None:
    """However many variations and branches of guidance there are, there are no more attentions than canvases."""
    hole = HoleTokens.from_grid_mask(random_mask(GRID, 3, 24, 1))
    packing = (hole.tile(times) if tiled else hole.repeat(times)).packing
    assert packing is not None and [group.size for group in packing.groups] == [times] * 3


@pytest.mark.parametrize("counts", BATCHES, ids=str)
def test_packed_tokens_are_the_valid_ones_of_each_row(counts: tuple[int, ...]) -> None:
    hole = HoleTokens.from_grid_mask(random_mask(GRID, *counts))
    packing, x = hole.packing, torch.randn(*hole.index.shape, 5)
    assert packing is not None
    packed = packing.pack(x)
    assert packed.shape == (1, sum(counts), 5)
    assert torch.equal(packing.unpack(packed), x * hole.valid[..., None])
    expected = [x[row, :count] for group in packing.groups for row, count in rows_of(group, counts)]
    assert torch.equal(packed[0], torch.cat(expected))
    owners = torch.arange(float(len(counts))).view(1, -1, 1, 1)
    assert torch.equal(packing.spread(owners)[0, 0, :, 0].long(), packing.owners)


def rows_of(group, counts: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(enumerate(counts))[group.rows]


def test_only_what_is_padded_is_packed() -> None:
    hole = HoleTokens.from_grid_mask(random_mask(GRID, 5, 5))
    assert hole.packing is None and not hole.padded
    ragged = HoleTokens.from_grid_mask(random_mask(GRID, 5, 4))
    assert ragged.packing is ragged.packing  # made once
    masked = ragged.keep_padding()
    assert masked.packing is None and torch.equal(masked.key_mask, ragged.valid)


def test_packing_asks_the_device_for_nothing() -> None:
    """A tensor on the meta device has no values to ask for."""
    packing = Packing.of((3, 1), 3, "meta")
    assert packing.pack(torch.empty(2, 3, 5, device="meta")).shape == (1, 4, 5)
