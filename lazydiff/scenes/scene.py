"""Scenes: a ground, a light and objects snapped to the token grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from .backgrounds import CANVAS, GREY, TOKEN, Background, paint_background, random_background
from .palette import COLOURS, TEXTURES
from .shapes import SHAPES
from .sprites import BOX, LIGHTS, PAD, SIZES, Sprite, sprite

Corner = tuple[int, int]
Area = tuple[int, int, int, int]  # x0, y0, x1, y1 in px
_FRAME = CANVAS + 2 * PAD  # shadows may leave the canvas


@dataclass(frozen=True)
class Thing:
    """What an object is: keys of SHAPES, COLOURS, TEXTURES and SIZES."""

    shape: str
    colour: str
    texture: str
    size: str


@dataclass(frozen=True)
class Placed:
    """An object and the pixel corner of its 24 x 24 box, a multiple of 8 in all that is drawn at random here."""

    thing: Thing
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """A whole picture; light: the side it comes from, "left" or "right"."""

    background: Background
    light: str
    things: tuple[Placed, ...]


def is_clear(x: int, y: int, things: Iterable[Placed]) -> bool:
    """Whether an object's box at this corner overlaps none of theirs."""
    return all(max(abs(x - p.x), abs(y - p.y)) >= BOX for p in things)


def blank_canvas() -> np.ndarray:
    """The empty grey canvas, uint8 [96, 96, 3]."""
    return np.full((CANVAS, CANVAS, 3), GREY, np.uint8)


def _sprite(thing: Thing, light: str) -> Sprite:
    return sprite(thing.shape, thing.colour, thing.texture, thing.size, light)


def render(scene: Scene, without: int | None = None) -> np.ndarray:
    """The picture, uint8 [96, 96, 3]; without: the index of an object to leave out together with its shadow."""
    frame = np.zeros((_FRAME, _FRAME, 3), np.float32)
    image = frame[PAD:-PAD, PAD:-PAD]
    image[:] = paint_background(scene.background, scene.light)
    shown = [p for i, p in enumerate(scene.things) if i != without]
    for p in shown:  # all shadows lie under all bodies, so leaving one object out changes nothing but its own pixels
        frame[p.y : p.y + BOX + 2 * PAD, p.x : p.x + BOX + 2 * PAD] *= 1 - _sprite(p.thing, scene.light).shadow
    for p in shown:
        drawn, place = _sprite(p.thing, scene.light), image[p.y : p.y + BOX, p.x : p.x + BOX]
        place *= 1 - drawn.alpha
        place += drawn.colour
    return np.round(image).astype(np.uint8)


def silhouette(placed: Placed) -> np.ndarray:
    """The pixels of the object's body and details, without its shadow: bool [96, 96]."""
    mask = np.zeros((CANVAS, CANVAS), bool)
    covered = _sprite(placed.thing, "left").alpha[..., 0] >= 0.5
    mask[placed.y : placed.y + BOX, placed.x : placed.x + BOX] = covered
    return mask


@cache
def local_footprint(thing: Thing, light: str) -> np.ndarray:
    """Every pixel an object changes, shadow included, over its box padded by PAD: bool [40, 40]."""
    drawn = _sprite(thing, light)
    local = drawn.shadow[..., 0] > 0.012  # under 3 of 255
    local[PAD:-PAD, PAD:-PAD] |= drawn.alpha[..., 0] > 0.012
    return local


def footprint(placed: Placed, light: str) -> np.ndarray:
    """Every pixel of the canvas the object changes, shadow included: bool [96, 96]."""
    frame = np.zeros((_FRAME, _FRAME), bool)
    local = local_footprint(placed.thing, light)
    frame[placed.y : placed.y + local.shape[0], placed.x : placed.x + local.shape[1]] = local
    return frame[PAD:-PAD, PAD:-PAD]


def random_thing(rng: np.random.Generator) -> Thing:
    texture = rng.choice(TEXTURES, p=(0.44, 0.28, 0.28))
    shape, colour, size = (rng.choice(list(table)) for table in (SHAPES, COLOURS, SIZES))
    return Thing(str(shape), str(colour), str(texture), str(size))


def _other_thing(rng: np.random.Generator, thing: Thing) -> Thing:
    """Another kind of the same size: always another colour, mostly another shape."""
    while True:
        other = random_thing(rng)
        if other.colour != thing.colour and (other.shape != thing.shape or rng.random() < 0.3):
            return Thing(other.shape, other.colour, other.texture, thing.size)


@cache
def _corners(stage: Area, width: int, height: int) -> list[Corner]:
    x0, y0, x1, y1 = stage
    return [(x, y) for y in range(y0, y1 - height + 1, TOKEN) for x in range(x0, x1 - width + 1, TOKEN)]


def _lattice(rng: np.random.Generator, stage: Area, rows: int, columns: int, near: int) -> list[Corner]:
    """A row or grid with one pitch per axis; empty where it does not fit."""
    spans = []
    for count, room in ((columns, stage[2] - stage[0]), (rows, stage[3] - stage[1])):
        fits = [pitch for pitch in (BOX, 32, 40) if BOX + (count - 1) * pitch <= room]
        wide = [pitch for pitch in fits if pitch >= near] or fits
        if not wide:
            return []
        spans.append(int(rng.choice(wide)))
    across, down = spans
    corners = _corners(stage, BOX + (columns - 1) * across, BOX + (rows - 1) * down)
    x, y = corners[int(rng.integers(len(corners)))]
    return [(x + i * across, y + j * down) for j in range(rows) for i in range(columns)]


def _scatter(rng: np.random.Generator, stage: Area, count: int, near: int) -> list[Corner]:
    """At most `count` corners at least `near` px apart in x or in y."""
    free = list(_corners(stage, BOX, BOX))
    chosen: list[Corner] = []
    while free and len(chosen) < count:
        x, y = free[int(rng.integers(len(free)))]
        chosen.append((x, y))
        free = [(u, v) for u, v in free if max(abs(u - x), abs(v - y)) >= near]
    return chosen


_GRIDS = ((2, 2), (2, 3), (3, 2), (3, 3))


def _layout(rng: np.random.Generator, background: Background, near: int) -> list[Corner]:
    stage = background.stage if rng.random() < 0.75 else (0, 0, CANVAS, CANVAS)
    form = rng.choice(("row", "grid", "scatter"), p=(0.35, 0.35, 0.3))
    if form == "row":
        return _lattice(rng, stage, 1, int(rng.integers(2, 5)), near)
    if form == "grid":
        return _lattice(rng, stage, *_GRIDS[int(rng.integers(len(_GRIDS)))], near)
    return _scatter(rng, stage, int(rng.integers(1, 6)), near)


def random_scene(rng: np.random.Generator, siblings: int = 0, odd: float = 0.3) -> Scene:
    """A scene of the world.

    siblings: at least so many equal objects, 0..8 (0: one scene in ten is empty); odd: the chance that one object of
    three or more is of another kind. All randomness comes from `rng`.
    """
    background = random_background(rng)
    light = str(rng.choice(LIGHTS))
    if siblings == 0 and rng.random() < 0.1:
        return Scene(background, light, ())
    kind = random_thing(rng)
    near = BOX if kind.size == "small" else 32
    corners: list[Corner] = []
    while len(corners) < max(siblings, 1):
        corners = _layout(rng, background, near)
    things = [Placed(kind, x, y) for x, y in corners]
    if len(things) > max(siblings, 2) and rng.random() < odd:
        i = int(rng.integers(len(things)))
        things[i] = Placed(_other_thing(rng, kind), things[i].x, things[i].y)
    return Scene(background, light, tuple(things))
