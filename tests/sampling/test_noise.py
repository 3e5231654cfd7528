"""Noise belongs to places of the canvas: not to the mask, and not to the batch."""

from __future__ import annotations

import math

import pytest
import torch

from lazydiff.core.tokens import HoleTokens
from lazydiff.sampling.noise import CanvasNoise


@pytest.mark.parametrize("seed", [0, 7, 2**63])
def test_a_place_has_the_same_noise_under_every_mask(seed: int) -> None:
    masks = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(3)) < torch.tensor([0.4, 0.8])[:, None, None]
    holes = [HoleTokens.from_grid_mask(mask[None]) for mask in masks]
    noises = [CanvasNoise([seed], hole, 4) for hole in holes]
    shared = (masks[0] & masks[1]).flatten()
    assert shared.sum() > 5 and holes[0].count != holes[1].count
    for _ in range(3):
        canvases = [
            hole.scatter(noise.next(), torch.zeros(1, 30, 4)) for hole, noise in zip(holes, noises, strict=True)
        ]
        assert torch.equal(canvases[0][:, shared], canvases[1][:, shared])


def test_noise_of_a_batch_is_that_of_its_rows() -> None:
    masks = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(4)) < 0.5
    hole = HoleTokens.from_grid_mask(masks)
    batch = CanvasNoise([5, 6, 5], hole, 4)
    alone = [CanvasNoise([s], HoleTokens.from_grid_mask(m[None]), 4) for s, m in zip([5, 6, 5], masks, strict=True)]
    assert hole.padded
    for _ in range(3):
        noise = batch.next()
        for row, single in enumerate(alone):
            assert torch.equal(noise[row][hole.valid[row]], single.next()[0])


def test_noise_is_normal_and_new_at_each_draw_and_seed() -> None:
    hole = HoleTokens.from_grid_mask(torch.ones(2, 64, 64, dtype=torch.bool))
    noise = CanvasNoise([1, 2], hole, 3)
    values = torch.stack([noise.next() for _ in range(2)]).flatten(0, 1)  # draw × seed, 12288 values each
    correlation = values.flatten(1) @ values.flatten(1).T / values[0].numel()
    torch.testing.assert_close(correlation, torch.eye(4), rtol=0, atol=4 * math.sqrt(2 / 12288))


def test_one_seed_per_mask() -> None:
    with pytest.raises(ValueError, match="one seed per mask"):
        CanvasNoise([1], HoleTokens.from_grid_mask(torch.ones(2, 4, 4, dtype=torch.bool)), 3)
