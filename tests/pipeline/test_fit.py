"""The square around a hole: where it lies, what is read from it, and what goes back."""

from __future__ import annotations

import pytest
import torch
from samples import scene
from torch import Tensor

from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.fit import Crop, crop_all


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


def test_nothing_outside_the_square_reaches_the_model(crop_model: LazyDiffusion) -> None:
    """The baseline's blindness: pasted, its answer does not change with the rest of the canvas."""
    image, mask = torch.rand(1, 3, 96, 96), box(30, 30, 30, 30)
    other = torch.rand(1, 3, 96, 96)
    other[..., 30:60, 30:60] = image[..., 30:60, 30:60]
    first, second = (edit(crop_model, i, mask, "a red tree", [1], blend="paste") for i in (image, other))
    inside = mask.expand_as(image) > 0
    assert torch.equal(first[inside], second[inside]) and torch.equal(first[~inside], image[~inside])


@pytest.mark.parametrize("height, width", [(96, 96), (40, 100), (200, 150)])
def test_pixels_outside_the_mask_stay(crop_model: LazyDiffusion, height: int, width: int) -> None:
    image, mask = torch.rand(1, 3, height, width), box(3, 2, 31, 20, (height, width))
    sketch = torch.rand_like(image)
    for options in ({}, {"sketch": sketch, "strength": 0.5}):
        result = edit(crop_model, image, mask, "a red tree", [1, 2], **options)  # type: ignore[arg-type]
        outside = (mask == 0).expand_as(result)
        assert torch.equal(result[outside], image.expand_as(result)[outside])
        assert result.shape == (2, 3, height, width) and not torch.equal(result[0], result[1])
