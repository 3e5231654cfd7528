"""A picture of the world as a value, and its drawing at any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backdrop import Backdrop, finish, paint_backdrop
from .easel import Light
from .items import PlacedItem, cast_shadow, draw_item

VISIBLE = 0.012  # under 3 of 255


@dataclass(frozen=True)
class WorldScene:
    """A whole picture; items: from far to near."""

    backdrop: Backdrop
    light: Light
    items: tuple[PlacedItem, ...]


def draw_scene(scene: WorldScene, size: int, without: int | None = None) -> np.ndarray:
    """The picture, uint8 [size, size, 3]; without: the index of an item to leave out together with its shadow."""
    image = paint_backdrop(scene.backdrop, scene.light, size)
    add_items(image, [(placed, scene.light) for i, placed in enumerate(scene.items) if i != without])
    return finish(image, scene.backdrop, scene.light)


def add_items(image: np.ndarray, shown: Sequence[tuple[PlacedItem, Light]]) -> None:
    """Draw items, each in its light, into a background float32 [size, size, 3]."""
    size = len(image)
    for placed, light in shown:  # all shadows lie under all bodies, so leaving one out changes but its own pixels
        window, dark = cast_shadow(placed, light, size).window(size)
        image[window] *= 1 - dark
    for placed, light in shown:
        window, body = draw_item(placed, light, size).window(size)
        image[window] *= 1 - body[..., 3:]
        image[window] += body[..., :3]


def item_silhouette(placed: PlacedItem, light: Light, size: int, least: float = 0.5) -> np.ndarray:
    """The pixels that the item's body covers by at least that share: bool [size, size]."""
    mask = np.zeros((size, size), bool)
    window, body = draw_item(placed, light, size).window(size)
    mask[window] = body[..., 3] >= least
    return mask


def item_footprint(placed: PlacedItem, light: Light, size: int) -> np.ndarray:
    """Every pixel that the item changes, shadow included: bool [size, size]."""
    mask = item_silhouette(placed, light, size, VISIBLE)
    window, dark = cast_shadow(placed, light, size).window(size)
    mask[window] |= dark[..., 0] > VISIBLE
    return mask
