"""The ten shapes, drawn as polygons in a 24 x 24 unit box (x to the right, y down)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from .palette import Colour

Points = list[tuple[float, float]]

BROWN: Colour = (112, 68, 36)
DARK: Colour = (52, 36, 32)
CREAM: Colour = (246, 228, 196)
DOUGH: Colour = (222, 166, 98)
LEAF: Colour = (64, 140, 52)
GLASS: Colour = (255, 240, 150)
SHINE: Colour = (255, 255, 255)
TURN = [2 * math.pi * i / 96 for i in range(96)]


class Sketch(Protocol):
    """What a shape draws on, from back to front."""

    def body(self, points: Points, tone: float = 1.0) -> None: ...  # the object's colour and texture, darkened by tone
    def detail(self, points: Points, colour: Colour) -> None: ...  # a fixed colour
    def cut(self, points: Points) -> None: ...  # a hole


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Points:
    angles = [math.radians(start + (end - start) * i / 64) for i in range(65)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def rect(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def tree(s: Sketch) -> None:
    s.detail(rect(10.2, 18, 13.8, 23), BROWN)
    s.body([(12, 7.5), (22.5, 19.5), (1.5, 19.5)], tone=0.84)
    s.body([(12, 4), (20.3, 13.8), (3.7, 13.8)], tone=0.92)
    s.body([(12, 1), (17.8, 8.2), (6.2, 8.2)])


def house(s: Sketch) -> None:
    s.detail(rect(16.5, 2.5, 19.5, 9), DARK)
    s.body(rect(3.5, 10.5, 20.5, 23))
    s.body([(12, 1.2), (23.2, 12), (0.8, 12)], tone=0.62)
    s.detail(rect(5.6, 15, 10, 23), BROWN)
    s.detail(rect(13, 14.6, 18.2, 19.2), GLASS)
    s.detail(rect(15.2, 14.6, 16, 19.2), DARK)


def mug(s: Sketch) -> None:
    s.body(ellipse(16.6, 13, 6.2, 6), tone=0.9)
    s.cut(ellipse(16.8, 13, 3.2, 3.2))
    s.body(rect(2, 5, 17.5, 19.5))
    s.body(ellipse(9.75, 19.5, 7.75, 3.3))
    s.body(ellipse(9.75, 5, 7.75, 3.2), tone=0.8)
    s.detail(ellipse(9.75, 5.3, 6.2, 2.1), DARK)


def star(s: Sketch) -> None:
    rim = [
        (12 + r * math.sin(math.pi * i / 5), 12.8 - r * math.cos(math.pi * i / 5))
        for i, r in enumerate([11.8, 5.4] * 5)
    ]
    s.body(rim)
    for i in range(0, 10, 2):  # the shaded half of every point
        s.body([(12, 12.8), rim[i], rim[i + 1]], tone=0.84)


def heart(s: Sketch) -> None:
    def height(t: float) -> float:
        return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)

    s.body([(12 + 11 * math.sin(t) ** 3, 10.6 - 0.72 * height(t)) for t in TURN])


def mushroom(s: Sketch) -> None:
    s.detail(rect(8.2, 11, 15.8, 20.5), CREAM)
    s.detail(ellipse(12, 20.4, 4.8, 2.6), CREAM)
    s.body(ellipse(12, 13, 11, 11.5, 180, 360))
    s.body(ellipse(12, 13, 11, 2.6), tone=0.66)


def flower(s: Sketch) -> None:
    s.detail(rect(11.1, 13, 12.9, 23), LEAF)
    s.detail([(12, 22.6), (5.2, 20.4), (4.2, 17), (8.6, 18)], LEAF)
    s.detail([(12, 22.6), (18.8, 20.4), (19.8, 17), (15.4, 18)], LEAF)
    for i in range(6):
        a = math.pi * (i / 3 + 1 / 6)
        s.body(ellipse(12 + 5 * math.cos(a), 9 + 5 * math.sin(a), 3.5, 3.5))
    s.detail(ellipse(12, 9, 3.1, 3.1), BROWN)


def fish(s: Sketch) -> None:
    s.body([(15, 12), (23, 4.5), (21, 12), (23, 19.5)], tone=0.8)
    s.body([(6.5, 7), (10.5, 2), (15, 6)], tone=0.8)
    s.body([(9, 17), (13.5, 21.5), (14.5, 17)], tone=0.8)
    s.body(ellipse(9.6, 12, 8.8, 6.6))
    s.detail(ellipse(5.6, 10.2, 2.1, 2.1), SHINE)
    s.detail(ellipse(5.2, 10.3, 1.15, 1.15), DARK)


def boat(s: Sketch) -> None:
    s.detail(rect(11.4, 1, 12.8, 18), DARK)
    s.body([(13.6, 1.6), (23, 15.8), (13.6, 15.8)])
    s.body([(10.6, 4), (10.6, 15.8), (1.6, 15.8)], tone=0.86)
    s.detail([(0.8, 17.2), (23.2, 17.2), (19, 23), (5, 23)], BROWN)


def donut(s: Sketch) -> None:
    s.detail(ellipse(12, 12, 11, 11), DOUGH)
    wavy = [(t, 9.3 + 0.7 * math.sin(7 * t)) for t in TURN]
    s.body([(12 + r * math.cos(t), 12 + r * math.sin(t)) for t, r in wavy])
    s.detail(ellipse(12, 12, 4.3, 4.3), DOUGH)
    s.cut(ellipse(12, 12, 3.2, 3.2))


SHAPES: dict[str, Callable[[Sketch], None]] = {
    f.__name__: f for f in (tree, house, mug, star, heart, mushroom, flower, fish, boat, donut)
}
