"""Canvases of any size for a model of one size: whole, or the square around a hole, there and back."""

from __future__ import annotations

import pytest
import torch
from samples import scene
from torch import Tensor

from lazydiff.pipeline.fit import Crop, Fit, crop_all


def box(x: int, y: int, width: int, height: int, canvas: tuple[int, int] = (96, 96)) -> Tensor:
    mask = torch.zeros(1, 1, *canvas)
    mask[..., y : y + height, x : x + width] = 1
    return mask


def smallest(mask: Tensor) -> int:
    """Side of the smallest square that holds the hole, by trying all."""
    height, width = mask.shape[-2:]
    for size in range(1, min(height, width) + 1):
        windows = mask[0, 0].unfold(0, size, 1).unfold(1, size, 1).sum((2, 3))
        if windows.max() == mask.sum():
            return size
    raise AssertionError("no square holds the hole")


@pytest.mark.parametrize(
    ("mask", "top", "left", "size"),
    [
        (box(30, 40, 20, 20), 40, 30, 20),
        (box(30, 40, 10, 20), 40, 25, 20),
        (box(0, 0, 3, 9), 0, 0, 9),  # at the border it moves inwards
        (box(90, 50, 6, 20), 50, 76, 20),
        (box(10, 95, 30, 1), 66, 10, 30),
        (box(0, 0, 96, 96), 0, 0, 96),
        (box(5, 5, 1, 1), 5, 5, 1),
        (box(30, 10, 40, 20, (40, 100)), 0, 30, 40),
    ],
)
def test_it_is_the_smallest_square_that_holds_the_hole(mask: Tensor, top: int, left: int, size: int) -> None:
    crop = Crop.around(mask)
    assert crop == (top, left, size)
    assert size == smallest(mask) and crop.of(mask).shape[-2:] == (size, size)
    assert crop.of(mask).sum() == mask.sum()


def test_any_hole_of_the_world_is_inside() -> None:
    for number in range(20):
        mask = scene(number)[1]
        crop = Crop.around(mask)
        assert crop.size == smallest(mask) and crop.of(mask).sum() == mask.sum()


def test_a_hole_longer_than_the_canvas_is_high_is_told() -> None:
    with pytest.raises(ValueError, match="no square inside a canvas of 100×40 holds this mask"):
        Crop.around(box(10, 10, 50, 20, (40, 100)))


def test_at_its_own_size_the_square_comes_back_as_it_was() -> None:
    image, mask = torch.rand(1, 3, 96, 96), box(20, 30, 48, 40)
    crop = Crop.around(mask)
    view, hole = crop.view(image, mask, 48)
    assert torch.equal(view, image[..., 26:74, 20:68]) and torch.equal(hole, mask[..., 26:74, 20:68])
    assert torch.equal(crop.back(view, image), image)


@pytest.mark.parametrize("size", [24, 31, 96])
def test_scaled_there_and_back_a_smooth_picture_is_the_same(size: int) -> None:
    """Bicubic scaling of a slow wave; tolerance: two grey levels. Outside the square every bit stays."""
    wave = (torch.linspace(0, 1, 96)[:, None] + torch.linspace(0, 1, 96)) / 2
    image, mask = wave.expand(1, 3, 96, 96), box(0, 0, size, size)
    crop = Crop.around(mask)
    view, hole = crop.view(image, mask, 48)
    assert view.shape == (1, 3, 48, 48) and hole.shape == (1, 1, 48, 48) and hole.all()
    before = image.clone()
    back = crop.back(torch.cat((view, 1 - view)), image)
    assert torch.equal(image, before) and (back[0] - image[0]).abs().max() < 2 / 255
    outside = (mask == 0).expand_as(image)
    assert torch.equal(back[:1][outside], image[outside]) and torch.equal(back[1:][outside], image[outside])


def test_any_hole_pixel_makes_a_hole_of_a_smaller_view() -> None:
    mask = box(0, 0, 96, 1)
    mask[..., 95, 50] = 1
    _, hole = Crop.around(mask).view(torch.rand(1, 3, 96, 96), mask, 48)
    assert hole[0, 0, 0].all() and hole[0, 0, 47, 25] == 1 and hole.sum() == 49


def test_each_of_a_batch_has_its_own_square() -> None:
    scenes = [scene(number) for number in range(3)]
    images, masks = crop_all(torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]), 48)
    for i, (image, mask, _) in enumerate(scenes):
        view, hole = Crop.around(mask).view(image, mask, 48)
        assert torch.equal(images[i : i + 1], view) and torch.equal(masks[i : i + 1], hole)


# Whole canvases of any size


@pytest.mark.parametrize(("height", "width"), [(96, 96), (192, 192), (64, 64), (100, 50), (33, 200), (8, 500)])
def test_a_canvas_goes_through_a_model_of_one_size_and_comes_back(height: int, width: int) -> None:
    image, mask = torch.rand(1, 3, height, width), torch.zeros(1, 1, height, width)
    mask[..., height // 2, width // 2] = 1
    fit = Fit.of(mask, 96)
    small, hole = fit.to_model(image, mask)
    assert small.shape == (1, 3, 96, 96) and hole.shape == (1, 1, 96, 96) and hole.any()
    assert not hole[..., fit.inner[0] :, :].any() and not hole[..., fit.inner[1] :].any()  # what fills it up is visible
    assert fit.from_model(small, image).shape == image.shape
    if max(height, width) == 96:
        assert torch.equal(fit.from_model(small, image), image)


@pytest.mark.parametrize(("height", "width"), [(192, 192), (48, 96), (150, 100)])
def test_scaled_for_a_model_and_back_a_smooth_canvas_is_the_same(height: int, width: int) -> None:
    """Bicubic scaling of a slow wave; tolerance: two grey levels."""
    wave = (torch.linspace(0, 1, height)[:, None] + torch.linspace(0, 1, width)) / 2
    image = wave.expand(1, 3, height, width)
    fit = Fit.whole(image, 96)
    small, _ = fit.to_model(image, torch.zeros(1, 1, height, width))
    assert (fit.from_model(small) - image).abs().max() < 2 / 255


def test_a_small_hole_on_a_large_canvas_is_looked_at_through_a_square() -> None:
    """Of three times its longer side, at least the model's own; what lies outside comes back bit for bit."""
    image, mask = torch.rand(1, 3, 400, 600), box(500, 100, 40, 20, (400, 600))
    fit = Fit.of(mask, 96)
    assert fit.region == (50, 460, 120, 120)  # the hole is in its middle
    small, hole = fit.to_model(image, mask)
    assert small.shape == (1, 3, 96, 96) and 0.05 < hole.mean() < 0.1
    back = fit.from_model(torch.zeros(2, 3, 96, 96), image)
    inside = torch.zeros(1, 1, 400, 600)
    fit.region.of(inside).fill_(1)
    assert not back[inside.expand_as(back) > 0].any()
    outside = (inside == 0).expand_as(back)
    assert torch.equal(back[outside], image.expand_as(back)[outside])
    assert Fit.of(box(300, 100, 8, 8, (400, 600)), 96).region[2:] == (96, 96)
    assert Fit.of(box(0, 0, 300, 200, (400, 600)), 96) == Fit.whole(image, 96) == Fit.of(mask * 0, 96)
    assert Fit.of(box(560, 360, 40, 40, (400, 600)), 96).region == (280, 480, 120, 120)  # moved inwards
