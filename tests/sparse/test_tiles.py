"""Tiles of a map against the map itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lazydiff.sparse.group_norm import PartStatistics, affine, scale_and_shift
from lazydiff.sparse.tiles import TilePyramid, Tiles

CLOSE = 1e-5  # the same sums in another order


def random_mask(height: int, width: int, spots: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(spots):
        top, left = (int(torch.randint(side, (), generator=generator)) for side in (height, width))
        mask[top : top + 3, left : left + 2] = True
    return mask


@pytest.fixture(params=range(6))
def pyramid(request: pytest.FixtureRequest) -> tuple[Tensor, TilePyramid]:
    mask = random_mask(33 + request.param, 40, 1 + 2 * request.param, request.param)
    return mask, TilePyramid(mask, mask, 4, 8)


def test_tiles_cover_the_mask_once_at_every_resolution(pyramid: tuple[Tensor, TilePyramid]) -> None:
    mask, tiled = pyramid
    assert [level.size for level in tiled.levels] == tiled.sizes[:3] and tiled.sizes[1] == (-(-len(mask) // 2), 20)
    for i, level in enumerate(tiled.levels):
        covered = torch.bincount(level.places[level.inside], minlength=level.size[0] * level.size[1])
        wanted = F.max_pool2d(mask[None, None].float(), 2**i, ceil_mode=True).flatten() > 0
        assert covered.max() == 1 and bool(covered[wanted].all())
        assert sorted([*level.others.tolist(), *level.places[level.inside].tolist()]) == list(range(len(covered)))


def test_a_convolution_of_tiles_is_that_of_the_map(pyramid: tuple[Tensor, TilePyramid]) -> None:
    """Cells around tiles that other tiles have are taken fresh from these, and all others from the record."""
    _, tiled = pyramid
    for level, below in zip(tiled.levels, [*tiled.levels[1:], None], strict=True):
        x, weight = torch.randn(2, 3, *level.size), torch.randn(5, 3, 3, 3)
        strip = level.strip(x)
        stale = level.put(torch.full_like(strip, 7.0), x)
        for padded in (level.with_halo(x), level.padded(strip, level.borders(stale))):
            expected = level.on_map(level.strip(F.conv2d(x, weight, padding=1)))
            found = level.on_map(level.joined(F.conv2d(padded, weight)))
            assert (found - expected).abs().max() < CLOSE * expected.abs().max()
            if below is not None:
                half = below.on_map(below.strip(F.conv2d(x, weight, padding=1, stride=2)))
                found = below.on_map(level.joined(F.conv2d(padded, weight, stride=2)))
                assert (found - half).abs().max() < CLOSE * half.abs().max()


def test_what_is_put_is_what_was_taken(pyramid: tuple[Tensor, TilePyramid]) -> None:
    _, tiled = pyramid
    for level in tiled.levels:
        x, other = torch.randn(2, 3, *level.size), torch.randn(2, 3, *level.size)
        both = level.put(level.strip(x), other)
        assert torch.equal(level.on_map(level.strip(both)), level.on_map(level.strip(x)))
        assert torch.equal(both.flatten(2)[..., level.others], other.flatten(2)[..., level.others])


def test_rectangle_or_tiles_whichever_is_less() -> None:
    compact, scattered = torch.zeros(2, 64, 64, dtype=torch.bool)
    compact[20:40, 24:44] = scattered[:4, :4] = scattered[-4:, -4:] = True
    one, many = Tiles.over(compact, 4), Tiles.over(scattered, 4)
    assert len(one.corners) == 1 and one.side == (20, 20)
    assert len(many.corners) == 2 and many.cells == 32


def test_nothing_is_in_tiles_of_maps_that_are_too_small_or_without_a_hole() -> None:
    mask = random_mask(16, 24, 2, 0)
    assert TilePyramid(mask, mask, 3, 17).share == 1 and not TilePyramid(mask, mask, 3, 17).levels
    assert not TilePyramid(mask, torch.zeros_like(mask), 3, 8).levels


def test_corrected_statistics_are_those_of_the_changed_map() -> None:
    norm = torch.nn.GroupNorm(4, 12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 12, 9, 10) + 3
    changed = x.clone()
    changed[..., 2:5, 3:9] = changed[..., 2:5, 3:9] * 2 + 1
    old = PartStatistics.of(x, x[..., 2:5, 3:9], 4)
    mean, variance = old.updated(changed[..., 2:5, 3:9], 9 * 10 * 3)
    scale, shift = scale_and_shift(mean, variance + norm.eps, *affine(norm, x, norm))
    assert (changed * scale + shift - norm(changed)).abs().max() < CLOSE * 10
    unchanged, _ = old.updated(x[..., 2:5, 3:9], 9 * 10 * 3)
    assert torch.equal(unchanged, old.mean)
