"""Canvases of any size for a model of one size: whole, or the square around a hole, there and back."""

from __future__ import annotations

import pytest
import torch
from samples import scene
from torch import Tensor

from lazydiff.pipeline.fit import Crop, Fit, Fitted, Zoom, crop_all
from lazydiff.pipeline.outpaint import Margins, outpaint


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


# Any size for models that take any


@pytest.mark.parametrize(
    ("size", "token", "outer"),
    [
        ((667, 1001), 16, (672, 1008)), ((672, 1008), 16, (672, 1008)), ((1000, 1000), 16, (1008, 1008)),
        ((1, 1), 16, (16, 16)), ((667, 1001), 8, (672, 1008)), ((1023, 1025), 32, (1024, 1056)),
    ],
)  # fmt: skip
def test_a_canvas_is_filled_up_to_whole_tokens(size: tuple[int, int], token: int, outer: tuple[int, int]) -> None:
    image, mask = torch.rand(2, 3, *size), torch.zeros(2, 1, *size)
    mask[..., -1] = 1
    fit = Fit.padded(image, token)
    assert fit.outer == outer and not fit.scaled and fit.trivial == (size == outer)
    rows, columns = (torch.arange(side).clamp(max=end - 1) for side, end in zip(outer, size, strict=True))
    whole, hole = fit.to_model(image, mask, "replicate")
    assert torch.equal(whole, image[:, :, rows][..., columns]) and torch.equal(hole, mask[:, :, rows][..., columns])
    assert torch.equal(fit.to_model(image, mask)[1].sum(), mask.sum())  # without, what is added is visible
    assert torch.equal(fit.from_model(whole), image)


ZOOMS = [
    # canvas (width, height), hole (x, y, width, height), surroundings -> region (top, left, height, width), scaled
    ((4000, 3000), (1800, 1300, 300, 300), 3, (1000, 1500, 900, 900), (1024, 1024)),
    ((4000, 3000), (1800, 1300, 300, 300), 1, (1284, 1784, 332, 332), (1024, 1024)),  # the least margin
    ((4000, 3000), (1800, 1300, 300, 100), 3, (1000, 1500, 700, 900), (896, 1168)),  # as wide on all sides
    ((4000, 3000), (0, 0, 300, 300), 3, (0, 0, 900, 900), (1024, 1024)),  # moved inwards
    ((4000, 3000), (3990, 2990, 10, 10), 3, (2744, 3744, 256, 256), (1024, 1024)),  # enlarged four times at most
    ((4000, 3000), (0, 1000, 4000, 300), 3, (0, 0, 3000, 4000), (880, 1184)),  # all of it, reduced
    ((4000, 3000), (1000, 500, 2000, 2000), 2, (0, 0, 3000, 4000), (880, 1184)),
    ((3000, 400), (100, 100, 200, 200), 3, (0, 0, 400, 600), (832, 1248)),  # as high as the canvas
    ((512, 512), (200, 200, 100, 100), 3, (100, 100, 300, 300), (1024, 1024)),
    ((1024, 1024), (300, 300, 400, 400), 3, (0, 0, 1024, 1024), (1024, 1024)),  # nothing to do
]


@pytest.mark.parametrize(("canvas", "hole", "surroundings", "region", "size"), ZOOMS)
def test_a_zoom_is_of_the_holes_surroundings_at_a_megapixel(
    canvas: tuple[int, int], hole: tuple[int, int, int, int], surroundings: float, region: tuple[int, ...],
    size: tuple[int, int],
) -> None:  # fmt: skip
    mask = box(*hole, canvas=(canvas[1], canvas[0]))
    fit = Fit.zoomed(mask, 16, Zoom(surroundings))
    assert fit.region == region and fit.inner == fit.outer == size
    assert fit.region.of(mask).sum() == mask.sum()
    assert fit.scaled == (region[2:] != canvas[::-1] or size != canvas[::-1]) and fit.trivial != fit.scaled
    # Aspect to a token of the shorter side, size to a token on both.
    assert size[0] / size[1] == pytest.approx(region[2] / region[3], rel=16 / min(size))
    assert size[0] * size[1] == pytest.approx(1024**2, rel=2 * 16 / min(size))


@pytest.mark.parametrize(
    ("megapixels", "token", "size"),
    [(1, 32, (1024, 1024)), (2, 16, (1456, 1456)), (0.25, 16, (512, 512)), (0.05, 8, (232, 232))],
)
def test_a_zoom_of_other_sizes(megapixels: float, token: int, size: tuple[int, int]) -> None:
    mask = box(1000, 1000, 300, 300, (3000, 3000))
    assert Fit.zoomed(mask, token, Zoom(3, megapixels)).outer == size


def test_a_zoom_leaves_room_for_a_hole_that_grows() -> None:
    mask = box(1000, 1000, 300, 300, (3000, 3000))
    assert Fit.zoomed(mask, 16, Zoom(3), edge=50) == Fit.zoomed(box(950, 950, 400, 400, (3000, 3000)), 16, Zoom(3))
    assert Fit.zoomed(mask * 0, 16, Zoom(3)).region == (0, 0, 3000, 3000)


def test_what_is_fitted_may_be_cut_out_before() -> None:
    image, mask = torch.rand(1, 3, 300, 400), box(100, 100, 40, 40, (300, 400))
    fit = Fit.zoomed(mask, 16, Zoom(3, 0.02))
    cut = fit.to_model(fit.region.of(image), fit.region.of(mask))
    assert fit.scaled and all(map(torch.equal, cut, fit.to_model(image, mask)))
    holes = Fitted(fit, fit.region.of(mask) > 0).holes
    assert torch.equal(holes, mask > 0)


@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (8, 0, 0, 0), (0, 16, 0, 3), (5, 6, 7, 8)])
@pytest.mark.parametrize("overlap", [0, 4, 100])
def test_outpainting_adds_holes_and_keeps_the_picture(margins: tuple[int, int, int, int], overlap: int) -> None:
    """Against pixel by pixel: added, or as near as the overlap to a side that something is added to."""
    image, mask = torch.rand(1, 3, 20, 30), box(25, 15, 2, 2, (20, 30))
    left, top, right, bottom = margins
    canvas, hole = outpaint(image, mask, Margins(*margins), overlap)
    assert canvas.shape[-2:] == hole.shape[-2:] == (20 + top + bottom, 30 + left + right)
    assert torch.equal(canvas[..., top : top + 20, left : left + 30], image)
    for y in range(canvas.shape[-2]):
        for x in range(canvas.shape[-1]):
            row, column = min(max(y - top, 0), 19), min(max(x - left, 0), 29)
            assert torch.equal(canvas[..., y, x], image[..., row, column])
            ends = [end for end, side in zip((column, row, 29 - column, 19 - row), margins, strict=True) if side]
            added = (row, column) != (y - top, x - left)
            near = min(ends, default=1000) < overlap
            assert hole[0, 0, y, x] == float(added or near or mask[0, 0, row, column] > 0)


def test_margins_below_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="none may be below 0"):
        outpaint(torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), Margins(left=-1))
