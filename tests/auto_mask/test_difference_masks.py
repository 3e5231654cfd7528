"""Difference masks against the same written out pixel by pixel and bin by bin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lazydiff.auto_mask.difference_mask import DifferenceMap, diffedit_heat, difference_mask, opening, otsu


def otsu_by_trying(values: np.ndarray) -> int:
    """The 8-bit threshold whose two classes differ most: n₀·n₁·(μ₀ − μ₁)², for each of them in turn."""
    best, most = 0, -1.0
    for threshold in range(256):
        low, high = values[values <= threshold], values[values > threshold]
        between = len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0
        if between > most * (1 + 1e-12):
            best, most = threshold, between
    return best


@pytest.mark.parametrize("number", range(8))
def test_otsu_is_the_best_of_all_thresholds(number: int) -> None:
    rng = np.random.default_rng(number)
    low, high = rng.beta(2, 8, 300), rng.beta(8, 3, 40 + 60 * number)
    heat = np.concatenate([low, high] if number else [low[:3], high[:2]]).astype(np.float32)
    levels = (torch.from_numpy(heat) * 255).round().numpy()
    threshold = otsu(torch.from_numpy(heat))
    assert threshold == (otsu_by_trying(levels) + 0.5) / 255
    assert ((heat > threshold) == (levels > otsu_by_trying(levels))).all()


def test_opening_keeps_what_squares_of_two_cover() -> None:
    mask = (torch.rand(13, 17) < 0.7).float()
    expected = torch.zeros_like(mask)
    for y in range(12):
        for x in range(16):
            if mask[y : y + 2, x : x + 2].all():
                expected[y : y + 2, x : x + 2] = 1
    assert 0 < expected.sum() < mask.sum() and torch.equal(opening(mask), expected)


def test_the_mask_is_what_changes() -> None:
    heat = 0.2 * torch.rand(12, 16)
    heat[3:8, 5:9] = 0.8 + 0.2 * torch.rand(5, 4)
    heat[10, 1] = 1.0  # a speck
    expected = torch.zeros(12, 16)
    expected[3:8, 5:9] = 1
    assert torch.equal(difference_mask(heat), expected)


def test_steps_count_alike_whatever_their_size() -> None:
    original = torch.randn(2, 4, 6, 8)
    changes = [torch.zeros_like(original) for _ in range(2)]
    changes[0][:, :, :2, :2], changes[1][:, :, 4:, 4:] = 0.1, 100.0
    differences = DifferenceMap()
    for change in changes:
        differences.add(original + change, original)
    heat = differences.heat()
    assert differences.differs and heat[:2, :2].min() > 0.99 and heat[4:, 4:].min() > 0.99 and not heat[3].any()


def test_a_step_is_the_normalised_sum_over_channels() -> None:
    edited, original = torch.randn(2, 1, 4, 6, 8)
    differences = DifferenceMap()
    differences.add(edited, original)
    one = (edited - original).abs().sum(1)[0]
    assert torch.allclose(differences.heat(), (one - one.min()) / (one.max() - one.min()))
    video = DifferenceMap()
    video.add(edited[:, :, None], original[:, :, None])
    assert torch.equal(video.heat(), differences.heat())


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_no_difference_gives_an_empty_mask(noise: float) -> None:
    original = torch.randn(1, 4, 6, 8)
    differences = DifferenceMap()
    differences.add(original + noise * torch.randn_like(original), original)
    assert not differences.differs and not differences.heat().any()
    assert not difference_mask(differences.heat()).any()


def test_no_step_is_told() -> None:
    with pytest.raises(ValueError, match="choose at least one step"):
        DifferenceMap().heat()


def test_diffedit_averages_seeds_and_cuts_extremes() -> None:
    source, target = torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 6, 8)
    target[0, :, :3], target[1, :, :3], target[:, :, 5, 7] = 1, -1, 50
    heat = diffedit_heat(target, source)
    mean = (24 * 4 + 200) / 48
    assert heat[5, 7] == 1 and heat[0, 0] == pytest.approx(4 / (3 * mean)) and heat[4, 0] == 0
    assert not diffedit_heat(source, source).any()
