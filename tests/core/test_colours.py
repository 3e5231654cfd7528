"""Colours around a hole, matched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lazydiff.core.colours import NEAR, WIDTH, match_colours

SAME = 1e-5  # sums of some thousand values in another order


def setting(rows: int = 2) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(rows, 1, 160, 200)
    mask[:, :, 70:90, 80:130] = 1
    return torch.rand(rows, 3, 160, 200), mask


def test_a_shift_of_tone_and_contrast_is_taken_back() -> None:
    image, mask = setting()
    gain, offset = torch.tensor([0.8, 1.0, 1.3]).view(3, 1, 1), torch.tensor([0.1, -0.05, 0.0]).view(3, 1, 1)
    matched = match_colours(image * gain + offset, image, mask)
    # Not quite, as the variance of a flat channel's noise is added to both.
    torch.testing.assert_close(matched, image, atol=1e-3, rtol=0)


def test_against_the_ring_written_out() -> None:
    source, mask = setting(1)
    destination = torch.rand_like(source) * 0.5
    ring = torch.zeros(160, 200, dtype=torch.bool)
    ring[70 - NEAR - WIDTH : 90 + NEAR + WIDTH, 80 - NEAR - WIDTH : 130 + NEAR + WIDTH] = True
    ring[70 - NEAR : 90 + NEAR, 80 - NEAR : 130 + NEAR] = False
    matched = match_colours(source, destination, mask)
    for channel in range(3):
        ours, theirs = source[0, channel][ring], destination[0, channel][ring]
        flat = (2 / 255) ** 2
        gain = ((theirs.var(correction=0) + flat) / (ours.var(correction=0) + flat)).sqrt()
        expected = (source[0, channel] - ours.mean()) * gain + theirs.mean()
        torch.testing.assert_close(matched[0, channel], expected, atol=SAME, rtol=0)


def test_what_lies_in_and_next_to_the_hole_does_not_count() -> None:
    source, mask = setting()
    other, near = source.clone(), torch.zeros_like(mask)
    near[:, :, 70 - NEAR : 90 + NEAR, 80 - NEAR : 130 + NEAR] = 1
    destination = source.clone()
    destination[near.expand_as(other) > 0] = 0
    torch.testing.assert_close(match_colours(source, destination, mask), source, atol=SAME, rtol=0)


@pytest.mark.parametrize("mask", [torch.ones(1, 1, 40, 40), torch.zeros(1, 1, 40, 40)], ids=["all hole", "no hole"])
def test_without_a_ring_nothing_changes(mask: Tensor) -> None:
    source = torch.rand(1, 3, 40, 40)
    assert torch.equal(match_colours(source, source * 0.5, mask), source)


def test_noise_of_a_flat_channel_is_not_amplified() -> None:
    source, mask = setting()
    flat = torch.full_like(source, 0.5) + 1e-4 * source
    assert (match_colours(flat, source, mask) - source.mean()).abs().max() < 0.05
