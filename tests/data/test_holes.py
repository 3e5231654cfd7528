"""Holes against slow, obvious references, and their shares against the numbers that they are drawn by."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.spatial import Delaunay

from lazydiff.data import holes as module
from lazydiff.data.holes import bounding_box, convex_hull, dilate_ellipse, generator_of, has_right_size, random_hole


def blob(seed: int, shape: tuple[int, int] = (40, 56)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(3):
        y, x = rng.integers(0, shape[0] - 6), rng.integers(0, shape[1] - 9)
        mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 9)] = True
    return mask


@pytest.mark.parametrize("radii", [(1.0, 1.0), (0.4, 3.7), (5.2, 2.0), (30.0, 70.0)])
def test_dilation_is_every_pixel_whose_ellipse_touches_the_mask(radii: tuple[float, float]) -> None:
    mask = blob(1)
    expected = np.zeros_like(mask)
    inside = np.argwhere(mask)
    for y, x in np.ndindex(mask.shape):
        expected[y, x] = ((((inside - (y, x)) / radii) ** 2).sum(1) <= 1).any()
    assert (dilate_ellipse(mask, *radii) == expected).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_hull_holds_what_lies_between_the_pixels(seed: int) -> None:
    """That of scipy, but for pixels whose centres are on its edge or half a pixel beyond: a line is drawn through
    whole pixels."""
    mask = blob(seed)
    hull = convex_hull(mask)
    places = np.argwhere(np.ones_like(mask))
    inside = (Delaunay(np.argwhere(mask)).find_simplex(places) >= 0).reshape(mask.shape)
    corners = np.argwhere(mask)[:, None] + np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * 0.51
    wider = (Delaunay(corners.reshape(-1, 2)).find_simplex(places) >= 0).reshape(mask.shape)
    assert hull[mask].all() and hull[inside].all() and wider[hull].all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_the_hull_of_a_line_is_the_line(shape: tuple[int, int]) -> None:
    mask = np.zeros((9, 9), bool)
    mask[1 : 1 + shape[0], 2 : 2 + shape[1]] = True
    assert (convex_hull(mask) == mask).all() and (bounding_box(mask) == mask).all()


def test_a_hole_holds_its_entity_and_is_its_seeds_and_keys_own() -> None:
    mask = blob(3)
    drawn = [random_hole(mask, generator_of(0, f"{i}")) for i in range(20)]
    assert all(hole[mask].all() for hole in drawn)
    assert (random_hole(mask, generator_of(0, "7")) == drawn[7]).all()
    assert len({hole.tobytes() for hole in drawn}) > 10
    assert generator_of(0, "7").random() != generator_of(1, "7").random()


def test_forms_come_as_often_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """2000 draws: 4 deviations of a share of 0.3 are 0.041."""
    seen: Counter[str] = Counter()
    reaches = []

    def watch(name: str) -> None:
        def form(mask: np.ndarray, *radii: float) -> np.ndarray:
            seen[name] += 1
            reaches.extend(radii)
            return mask

        monkeypatch.setattr(module, name, form)

    for name in ("dilate_ellipse", "convex_hull", "bounding_box"):
        watch(name)
    for i in range(2000):
        random_hole(blob(0, (100, 100)), generator_of(0, f"{i}"))
    shares = {name: count / 2000 for name, count in seen.items()}
    assert shares == pytest.approx({"dilate_ellipse": 0.7, "convex_hull": 0.2, "bounding_box": 0.1}, abs=0.041)
    assert 0.5 <= min(reaches) < 0.6 and 14 < max(reaches) <= 15  # 0.5 % once to 5 % three times, of 100 px


def test_specks_and_whole_canvases_are_no_entities() -> None:
    mask = np.zeros((100, 100), bool)
    sizes = {}
    for pixels in (0, 19, 20, 7000, 7001):
        mask.flat[:pixels] = True
        sizes[pixels] = has_right_size(mask)
    assert sizes == {0: False, 19: False, 20: True, 7000: True, 7001: False}
