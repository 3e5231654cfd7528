"""Masks against scipy's morphology and against what a user sees: nothing lost, nothing beyond the radius."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from lazydiff.core.masks import binarise, bounds, distance, feather, fill_islands, grow, guided_filter, to_grid

RADII = [1, 2, 3, 5]


def random_mask(density: float = 0.03, size: tuple[int, int] = (30, 41)) -> Tensor:
    """[2, 1, H, W] with scattered holes, one of them in a corner."""
    mask = (torch.rand(2, 1, *size) < density).float()
    mask[0, 0, 0, 0] = 1
    return mask


def disc(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def each(function, mask: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(function(m[0].numpy() > 0)).float()[None] for m in mask])


def test_binarise():
    soft = torch.tensor([0.0, 0.49, 0.5, 0.51, 1.0]).view(1, 1, 1, 5)
    assert binarise(soft).flatten().tolist() == [0, 0, 0, 1, 1]
    assert binarise(soft, 0.1).flatten().tolist() == [0, 1, 1, 1, 1]
    assert binarise(soft.half()).dtype == torch.float32


@pytest.mark.parametrize("radius", RADII)
def test_grow_is_dilation_by_a_disc(radius):
    mask = random_mask()
    expected = each(lambda m: ndimage.binary_dilation(m, disc(radius)), mask)
    assert torch.equal(grow(mask, radius), expected)
    assert expected.sum() > mask.sum()


@pytest.mark.parametrize("radius", RADII)
def test_grow_below_zero_is_erosion_by_a_disc(radius):
    mask = 1 - random_mask(0.01)
    # What lies beyond the canvas does not eat into a mask that touches the border.
    expected = each(lambda m: ndimage.binary_erosion(m, disc(radius), border_value=1), mask)
    assert torch.equal(grow(mask, -radius), expected)
    assert 0 < expected.sum() < mask.sum()


@pytest.mark.parametrize("reach", [1, 4, 100])
def test_distance_is_exact_within_its_reach(reach):
    mask = random_mask(0.005)
    expected = each(ndimage.distance_transform_edt, 1 - mask)  # of the visible pixels to the nearest hole
    found = distance(mask, reach)
    near = expected <= reach
    torch.testing.assert_close(found[near], expected[near], atol=1e-5, rtol=0)  # rounding of the square root alone
    assert (found[~near] > reach).all()


@pytest.mark.parametrize("function", [grow, feather])
def test_nothing_to_do_changes_nothing(function):
    mask = random_mask()
    assert torch.equal(function(mask, 0), mask)
    assert not function(torch.zeros_like(mask), 4).any()
    assert torch.equal(function(torch.ones_like(mask), 4), torch.ones_like(mask))


@pytest.mark.parametrize("pixels", RADII)
def test_feather_falls_with_distance(pixels):
    mask = random_mask(0.002)
    soft = feather(mask, pixels)
    assert soft.min() >= 0 and soft.max() <= 1
    assert torch.equal(soft[mask > 0], torch.ones_like(soft[mask > 0]))
    away = each(lambda m: ndimage.distance_transform_edt(~m), mask)
    assert not soft[away >= pixels].any()
    # One value per whole ring, so farther is never more opaque.
    ring = torch.ceil(away)
    expected = (1 - ring / pixels).clamp(min=0)
    torch.testing.assert_close(soft, expected, atol=1e-6, rtol=0)  # rounding of the division alone
    assert ((soft > 0) & (soft < 1)).any() == (pixels > 1)


@pytest.mark.parametrize("cell, size", [(8, (32, 48)), (16, (32, 48)), (1, (5, 7))])
def test_any_hole_pixel_makes_a_hole(cell, size):
    mask = random_mask(0.01, size)
    cells = to_grid(mask, cell)
    assert cells.shape == (2, 1, size[0] // cell, size[1] // cell)
    for b in range(2):
        for y in range(cells.shape[2]):
            for x in range(cells.shape[3]):
                pixels = mask[b, 0, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
                assert cells[b, 0, y, x] == float(pixels.any())


def test_grids_nest():
    """The token mask is the same whether pooled from pixels or from the latent mask (8 px cells, patches of 2)."""
    mask = random_mask(0.01, (64, 96))
    assert torch.equal(to_grid(to_grid(mask, 8), 2), to_grid(mask, 16))


def test_bounds_hold_all_holes_of_a_batch_and_nothing_else():
    masks = torch.zeros(2, 1, 20, 30)
    assert bounds(masks) is None
    masks[0, 0, 3, 7] = masks[1, 0, 18, 5] = 0.1
    assert bounds(masks) == ((3, 19), (5, 8)) == bounds(masks > 0)


SPIRAL = """
#########
........#
#######.#
#.....#.#
#.###.#.#
#.#...#.#
#.#####.#
#.......#
#########
"""
RING, CORNER = "......\n.####.\n.#..#.\n.#..#.\n.####.\n......", "##.\n#..\n###\n..."


@pytest.mark.parametrize("drawn", [SPIRAL, SPIRAL.replace("........#", "#.......#"), RING, CORNER, "###", "..."])
def test_islands_are_filled_as_scipy_fills_them(drawn):
    mask = torch.tensor([[float(mark == "#") for mark in row] for row in drawn.split()])[None, None]
    expected = ndimage.binary_fill_holes(mask[0, 0].numpy())
    assert torch.equal(fill_islands(mask)[0, 0], torch.from_numpy(expected).float())


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6, 0.9])
def test_islands_of_noise_too_each_of_a_batch_alone(share):
    masks = random_mask(share, (40, 53))
    filled = fill_islands(masks)
    expected = [torch.from_numpy(ndimage.binary_fill_holes(mask[0].numpy())).float() for mask in masks]
    assert torch.equal(filled[:, 0], torch.stack(expected)) and (filled >= masks).all()


def test_guided_filter_is_a_linear_fit_in_every_window():
    """Against least squares with a ridge, window by window; 3×3 systems solved in fp32."""
    heat, image, radius, softness = torch.rand(1, 1, 9, 11), torch.rand(1, 3, 9, 11), 2, 1e-2
    fits = torch.zeros(9, 11, 4, dtype=torch.float64)
    windows = [[(slice(max(y - 2, 0), y + 3), slice(max(x - 2, 0), x + 3)) for x in range(11)] for y in range(9)]
    for y in range(9):
        for x in range(11):
            colours = image[0][(slice(None), *windows[y][x])].flatten(1).T.double()
            levels = heat[0, 0][windows[y][x]].flatten().double()
            centred = colours - colours.mean(0)
            ridge = centred.T @ centred + softness * len(colours) * torch.eye(3)
            slope = torch.linalg.solve(ridge, centred.T @ (levels - levels.mean()))
            fits[y, x] = torch.cat((slope, (levels.mean() - colours.mean(0) @ slope)[None]))
    expected = torch.zeros(9, 11)
    for y in range(9):
        for x in range(11):
            fit = fits[windows[y][x]].flatten(0, 1).mean(0)
            expected[y, x] = image[0, :, y, x].double() @ fit[:3] + fit[3]
    assert torch.allclose(guided_filter(heat, image, radius, softness)[0, 0], expected.clamp(0, 1), atol=1e-4)


def test_a_coarse_heat_follows_the_edges_of_its_image():
    image = torch.full((1, 3, 48, 48), 0.5)
    image[..., 11:29, 13:31] = torch.tensor([0.9, 0.2, 0.1]).view(1, 3, 1, 1)
    wanted = image[:, :1] > 0.5
    heat = F.interpolate(F.avg_pool2d(wanted.float(), 8), (48, 48), mode="bilinear")
    assert ((heat > 0.5) != wanted).sum() > 30 and ((guided_filter(heat, image, 6) > 0.5) != wanted).sum() < 3
