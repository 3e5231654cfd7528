"""Random scenes: which things there are, and where they stand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .backdrop import Backdrop, random_backdrop
from .colours import HUES, random_hue
from .easel import Light
from .items import FLYING, ITEMS, Item, PlacedItem, random_item
from .panel import shrink
from .scene import WorldScene

WHOLE = 512  # px of a picture; what is in larger ones grows with them
SMALLEST, LARGEST = 24, 220  # px of a thing's box in a picture of that size, and in smaller ones …
MOST = 0.19, 0.6  # … but for what would be more than so much of their sides
_DOWN = (0.16, 0.96)  # where things stand on a ground: 0 at the horizon, 1 at the lower edge
_AFLOAT = ("boat", "boat", "boat", "fish", "fish", "bird", "ball", "balloon", "cloud", "umbrella", "donut")


def random_light(rng: np.random.Generator) -> Light:
    side = float(rng.choice((-1, 1)) * rng.uniform(0.35, 1))
    return Light(side, float(rng.uniform(0.55, 1)), float(rng.normal(0, 0.5)), float(rng.uniform(0.25, 0.55)),
                 float(rng.uniform(0.012, 0.045)))  # fmt: skip


def other_item(rng: np.random.Generator, item: Item, kinds: tuple[str, ...] = tuple(ITEMS)) -> Item:
    """One that no caption confuses with the item: of another colour, mostly of another kind."""
    name = str(rng.choice([name for name in HUES if name != item.name]))
    colour = random_hue(rng, name)
    if rng.random() < 0.3:
        return replace(item, name=name, colour=colour)
    return replace(random_item(rng, kinds), name=name, colour=colour)


def _groups(rng: np.random.Generator, least: int, kinds: tuple[str, ...]) -> list[Item]:
    """The items of a scene: a family of equal ones, often a second one or a stranger, in any order."""
    item = random_item(rng, kinds)
    items = [item] * max(least, int(rng.choice((1, 2, 3, 4, 5, 6), p=(0.24, 0.16, 0.2, 0.2, 0.12, 0.08))))
    draw = rng.random()
    if draw < 0.3:
        items += [other_item(rng, item, kinds)] * int(rng.integers(1, 4))
    elif draw < 0.42:
        items += [other_item(rng, item, kinds) for _ in range(int(rng.integers(1, 4)))]
    elif draw < 0.52 and len(items) > max(least, 2):
        items[-1] = other_item(rng, item, kinds)
    if rng.random() < 0.6:
        items = [items[i] for i in rng.permutation(len(items))]
    return items


def box_overlap(a: PlacedItem, b: PlacedItem) -> float:
    """The share of the smaller box that lies in the other."""
    wide = min(a.x + a.side / 2, b.x + b.side / 2) - max(a.x - a.side / 2, b.x - b.side / 2)
    high = min(a.y, b.y) - max(a.y - a.side, b.y - b.side)
    return max(wide, 0) * max(high, 0) / min(a.side, b.side) ** 2


def place_item(rng: np.random.Generator, backdrop: Backdrop, item: Item, side: float) -> PlacedItem:
    """A random place for an item whose box has that side near the viewer."""
    if backdrop.sky and item.kind in FLYING:
        side = min(side, 0.7 * backdrop.horizon)
        x, y = rng.uniform(side / 2, 1 - side / 2), rng.uniform(side + 0.01, backdrop.horizon + 0.1 * side)
        return PlacedItem(item, float(x), float(y), side, "air")
    if backdrop.receding:
        down = float(rng.uniform(*_DOWN))
        side = float(side * shrink(down))
        x = rng.uniform(0.45 * side, 1 - 0.45 * side)
        return PlacedItem(item, float(x), backdrop.horizon + (1 - backdrop.horizon) * down, side, "ground")
    x, y = rng.uniform(side / 2, 1 - side / 2), rng.uniform(1.02 * side, 0.98)
    return PlacedItem(item, float(x), float(y), side)


def _scattered(
    rng: np.random.Generator, backdrop: Backdrop, items: list[Item], side: float, crowded: float
) -> list[PlacedItem]:
    """Items at random places whose boxes overlap by no more than a share; some may find no place."""
    placed: list[PlacedItem] = []
    for item in items:
        for _ in range(30):
            candidate = place_item(rng, backdrop, item, side)
            if all(box_overlap(candidate, other) <= crowded for other in placed):
                placed.append(candidate)
                break
    return placed


def _aligned(rng: np.random.Generator, backdrop: Backdrop, items: list[Item], side: float) -> list[PlacedItem]:
    """Items in rows: one or more on a surface, one on a ground; empty if they do not fit."""
    count = len(items)
    rows = 1 if backdrop.receding else int(rng.integers(1, 4))
    columns = -(-count // rows)
    wide, high = rng.uniform(1.02, 1.7), rng.uniform(1.05, 1.6)
    down = float(rng.uniform(*_DOWN))
    if backdrop.receding:
        side = float(side * shrink(down))
    room_x, room_y = 0.98 - side * (1 + (columns - 1) * wide), 0.98 - side * (1 + (rows - 1) * high)
    if room_x < 0 or room_y < 0:
        return []
    x0, y0 = 0.01 + side / 2 + rng.uniform(0, room_x), 0.01 + side + rng.uniform(0, room_y)
    shaken = 0.04 * side * (rng.random() < 0.3)
    shakes = rng.normal(0, 1, (count, 2)) * shaken
    placed = []
    for i, item in enumerate(items):
        x = x0 + side * wide * (i % columns) + shakes[i, 0]
        y = backdrop.horizon + (1 - backdrop.horizon) * down if backdrop.receding else y0 + side * high * (i // columns)
        placed.append(PlacedItem(item, float(x), float(y + shakes[i, 1]), side, _support(backdrop, item)))
    return placed


def side_range(size: int) -> tuple[float, float]:
    """The smallest and the largest box of a thing in pictures of `size` pixels, in sides of the picture: in small
    pictures things are no smaller, so that fewer find a place."""
    side = min(size, WHOLE)
    return min(SMALLEST / side, MOST[0]), min(LARGEST / side, MOST[1])


def _random_side(rng: np.random.Generator, backdrop: Backdrop, sides: tuple[float, float]) -> float:
    """The side of a thing's box where it is nearest."""
    least = min((3 if backdrop.receding else 1.2) * sides[0], 0.9 * sides[1])
    return float(least * (sides[1] / least) ** (rng.random() ** 0.7))


def _support(backdrop: Backdrop, item: Item) -> str:
    return "ground" if backdrop.receding else "wall"


def random_world(rng: np.random.Generator, least: int = 1, size: int = WHOLE) -> WorldScene:
    """A scene of the world; least: at least so many equal items, 0…6 (0: one scene in ten is empty); size: px of the
    picture, see `side_range`"""
    light = random_light(rng)
    if least == 0 and rng.random() < 0.1:
        return WorldScene(random_backdrop(rng), light, ())
    while True:
        backdrop = random_backdrop(rng)
        afloat = backdrop.family == "coast" and rng.random() < 0.8
        items = _groups(rng, least, _AFLOAT if afloat else tuple(ITEMS))
        side = _random_side(rng, backdrop, side_range(size))
        flying = backdrop.sky and any(item.kind in FLYING for item in items)
        if rng.random() < 0.45 and not flying:
            placed = _aligned(rng, backdrop, items, side)
        else:
            placed = _scattered(rng, backdrop, items, side, float(rng.uniform(0.1, 0.55)) * (rng.random() < 0.5))
        if backdrop.receding:
            placed.sort(key=lambda p: p.y)
        most = max((sum(p.item == q.item for q in placed) for p in placed), default=0)
        if most >= max(least, 1):
            return WorldScene(backdrop, light, tuple(placed))
