"""Evidence: the prompt whose estimate is nearer to the picture has it."""

from __future__ import annotations

import pytest
import torch

from lazydiff.auto_mask.evidence import Evidence


def test_evidence_is_where_the_prompt_is_nearer() -> None:
    picture = torch.randn(1, 4, 8, 8)
    named, other = picture + 0.1, picture + 0.1
    named[..., :4, :4] = picture[..., :4, :4]
    other[..., 4:, 4:] = picture[..., 4:, 4:]
    evidence = Evidence()
    evidence.add(picture, named, other)
    weight = evidence.weight((8, 8), (8, 8))
    assert torch.allclose(weight[:3, :3], torch.ones(3, 3), atol=1e-4) and not weight[5:, 5:].any()
    assert weight.max() == 1


def test_evidence_is_the_mean_gain_over_three_by_three_cells() -> None:
    """Latent of two cells per cell of the grid; of sums in another order."""
    picture, named, other = torch.randn(3, 2, 4, 12, 16)
    evidence = Evidence()
    for row in range(2):
        evidence.add(picture[row : row + 1], named[row : row + 1], other[row : row + 1])
    gain = ((other - picture) ** 2 - (named - picture) ** 2).sum(1).mean(0)
    cells = gain.view(6, 2, 8, 2).mean((1, 3))
    expected = torch.zeros(6, 8)
    for y in range(6):
        for x in range(8):
            expected[y, x] = cells[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean().clamp(min=0)
    assert torch.allclose(evidence.weight((6, 8), (6, 8)), expected / expected.max(), atol=1e-4)
    assert evidence.weight((6, 8), (24, 32)).shape == (24, 32)


def test_no_evidence_at_all_is_nothing() -> None:
    picture = torch.randn(1, 4, 8, 8)
    evidence = Evidence()
    with pytest.raises(ValueError, match="choose at least one step"):
        evidence.weight((8, 8), (8, 8))
    evidence.add(picture, picture + 1, picture)
    assert not evidence.weight((8, 8), (8, 8)).any()
