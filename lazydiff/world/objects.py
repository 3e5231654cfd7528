"""Things made by people; every function draws one from back to front, `rng` varying its proportions."""

from __future__ import annotations

import math

import numpy as np

from .creatures import SNOW
from .curves import oval, polygon, quad, spline
from .easel import Easel, bulge, slope, tube
from .plants import BARK, CREAM

GLASS = (0.70, 0.86, 0.95)
STEEL = (0.72, 0.73, 0.76)
RUBBER = (0.17, 0.17, 0.19)
SLATE = (0.45, 0.46, 0.50)
DOUGH = (0.86, 0.64, 0.38)
ROOFS = ((0.62, 0.26, 0.20), (0.36, 0.38, 0.44), (0.50, 0.33, 0.22))


def draw_house(easel: Easel, rng: np.random.Generator) -> None:
    eaves, ridge = rng.uniform(48, 56), rng.uniform(12, 20)
    roof = ROOFS[int(rng.integers(len(ROOFS)))]
    easel.part(quad(66, ridge - 8, 76, ridge + 16), (0.55, 0.30, 0.25), slope(0.1, 0))
    easel.part(quad(64, ridge - 10, 78, ridge - 5), (0.48, 0.26, 0.22))
    easel.part(quad(50, eaves - 2, 95, 100), form=slope(0.45, 0), edge=0.12)
    gable = polygon((6, 100), (6, eaves), (28, ridge + 4), (50, eaves), (50, 100))
    easel.part(gable, form=slope(-0.25, 0), edge=0.12)
    easel.part(polygon((28, ridge), (81, ridge), (100, eaves + 3), (50, eaves + 3)), roof, slope(0.25, -0.35))
    bargeboard = polygon((28, ridge - 1), (53, eaves + 4), (49, eaves + 6), (28, ridge + 9), (6, eaves + 5),
                         (1, eaves + 4))  # fmt: skip
    easel.part(bargeboard, roof, slope(-0.2, -0.2), tone=0.85)
    easel.part(quad(21, 72, 35, 100), BARK, slope(-0.25, 0))
    easel.part(oval(32, 87, 1.4, 1.4), (0.9, 0.8, 0.4), edge=0)
    for x in (57, 77):
        easel.part(quad(x - 1.5, eaves + 12.5, x + 12.5, eaves + 29.5), SNOW, slope(0.4, 0), edge=0.1)
        easel.part(quad(x, eaves + 14, x + 11, eaves + 28), GLASS, slope(0.4, -0.2), edge=0.2)
        easel.part(quad(x + 5, eaves + 14, x + 6, eaves + 28), SNOW, slope(0.4, 0), edge=0)
        easel.part(quad(x, eaves + 20.5, x + 11, eaves + 21.5), SNOW, slope(0.4, 0), edge=0)
    easel.part(oval(28, eaves + 4, 5.5, 5.5), SNOW, edge=0.1)
    easel.part(oval(28, eaves + 4, 4, 4), GLASS, edge=0.2)


def draw_car(easel: Easel, rng: np.random.Generator) -> None:
    roof, nose = rng.uniform(44, 50), rng.uniform(-3, 3)
    body = spline((2, 84), (3, 72), (16, 67 + nose), (30, 64), (40, roof + 2), (48, roof), (66, roof), (76, roof + 3),
                  (86, 64), (97, 68), (99, 84), (94, 91), (50, 92), (6, 91))  # fmt: skip
    easel.part(body, form=bulge(50, 78, 62, 36, 0.85), gloss=0.4)
    easel.part(polygon((34, 65), (42, roof + 5), (56, roof + 4), (56, 65)), GLASS, slope(0, -0.3))
    easel.part(polygon((60, 65), (60, roof + 4), (70, roof + 5), (79, 65)), GLASS, slope(0, -0.3))
    easel.part(polygon((58, 66), (58, 88)), tone=0.55, width=0.9, edge=0)
    easel.part(polygon((62, 71), (68, 71)), STEEL, width=1.8)
    easel.part(quad(0.5, 83, 99.5, 88), STEEL, slope(0, 0.2))
    easel.part(oval(6, 75, 3.4, 4), (1.0, 0.95, 0.7), "bulge")
    easel.part(oval(96.5, 75, 2.2, 3.6), (0.85, 0.15, 0.12), "bulge")
    for x in (24, 77):
        easel.part(oval(x, 87, 14, 14, 180, 360), tone=0.35, edge=0)
        easel.part(oval(x, 88, 11.8, 11.8), RUBBER, "bulge")
        easel.part(oval(x, 88, 6.2, 6.2), STEEL, "bulge")
        easel.part(oval(x, 88, 2, 2), RUBBER, edge=0)


def draw_boat(easel: Easel, rng: np.random.Generator) -> None:
    mast, rake = rng.uniform(46, 52), rng.uniform(-2, 2)
    easel.part(polygon((mast, 3), (mast + rake, 72)), BARK, width=2.6)
    easel.part(polygon((mast, 2), (mast - 12, 5.5), (mast, 9)), form=slope(-0.2, 0), edge=0.1)
    main = spline((mast + 3, 8), (mast + 24, 34), (96, 62), (96, 64), (mast + 4, 64), (mast + 3, 62))
    easel.part(main, CREAM, bulge(mast, 60, 62, 62, 0.8), edge=0.18)
    jib = spline((mast - 2, 14), (mast - 3, 62), (mast - 4, 64), (10, 64), (10, 62), (mast - 20, 40))
    easel.part(jib, CREAM, bulge(mast - 40, 66, 60, 60, 0.7), edge=0.18, tone=0.94)
    hull = spline((1, 70), (3, 68), (97, 68), (99, 70), (92, 84), (82, 97), (76, 100), (26, 100), (18, 97), (8, 84))
    easel.part(hull, form=bulge(50, 72, 66, 40), gloss=0.2)
    easel.part(polygon((5, 72), (95, 72)), SNOW, width=3, edge=0.2)


def draw_mug(easel: Easel, rng: np.random.Generator) -> None:
    wide, top = rng.uniform(32, 37), rng.uniform(18, 26)
    left, right = 6.0, 6 + 2 * wide
    middle = (left + right) / 2
    easel.part(oval(right + 2, 60, 22, 23), form="bulge", edge=0.3)
    easel.cut(oval(right + 3, 60, 12.5, 13.5))
    lower = oval(middle, 93, wide, 7, 0, 180)
    body = np.concatenate([polygon((right, top)), lower, polygon((left, top))])
    easel.part(body, form=tube(left, right), gloss=0.45)
    easel.part(oval(middle, top, wide, 8), form=slope(0, 0.1), edge=0.1)
    easel.part(oval(middle, top + 0.6, wide - 3.2, 6), (0.26, 0.15, 0.10), slope(0, 0.2), edge=0.3)
    easel.part(oval(middle - 4, top + 1.6, wide - 12, 3), (0.36, 0.22, 0.14), edge=0)


def draw_ball(easel: Easel, rng: np.random.Generator) -> None:
    sphere, turn = bulge(50, 54, 46, 46, 0.97), rng.uniform(0, 2 * math.pi)
    easel.part(oval(50, 54, 46, 46), form=sphere, gloss=0.85)
    thread = SLATE if min(easel.coat.colour) > 0.8 else SNOW
    for pole, distance in ((turn, 0.45), (turn, -0.45), (turn + math.pi / 2, 0.0)):
        seam = _circle_on_sphere(pole, distance) * 44.4 + (50, 54)
        easel.part(seam, thread, sphere, width=2.8, edge=0)


def _circle_on_sphere(pole: float, distance: float) -> np.ndarray:
    """The visible arc of the unit sphere's circle about a pole that leans to the viewer, [N, 2]."""
    lean = 0.5
    axis = np.array([math.cos(lean) * math.cos(pole), math.cos(lean) * math.sin(pole), math.sin(lean)])
    first = np.array([-math.sin(pole), math.cos(pole), 0.0])
    t = np.linspace(-math.pi, math.pi, 90)[:, None]
    second = np.cross(axis, first)
    circle = distance * axis + math.sqrt(1 - distance**2) * (np.cos(t) * first + np.sin(t) * second)
    hidden = np.flatnonzero(circle[:, 2] < 0)
    if len(hidden):  # begin behind, so that the visible arc is in one piece
        circle = np.roll(circle, -int(hidden[len(hidden) // 2]), 0)
    return circle[circle[:, 2] >= 0, :2]


def draw_umbrella(easel: Easel, rng: np.random.Generator) -> None:
    dome, hook = rng.uniform(6, 12), rng.uniform(-2, 2)
    handle = spline((50, 40), (50, 70), (50, 88), (54, 97), (62, 97 + hook), (66, 89), closed=False)
    easel.part(handle, BARK, width=3.4)
    easel.part(polygon((50, 1), (50, 12)), STEEL, width=2.2)
    angle = np.linspace(0, math.pi / 2, 12)[:, None]
    rim = np.array([(x, 57 - 6 * math.sin(math.pi * x / 100)) for x in (2, 21, 40, 60, 79, 98)])
    for i, (left, right) in enumerate(zip(rim[:-1], rim[1:], strict=True)):
        top = np.array([50, dome])
        down = [top + (end - top) * np.concatenate([np.sin(angle), 1 - np.cos(angle)], 1) for end in (left, right)]
        hollow = spline(tuple(left), tuple((left + right) / 2 - (0, 6)), tuple(right), closed=False)
        easel.part(np.concatenate([down[0], hollow, down[1][::-1]]), form=slope(0.32 * (i - 2), -0.3), edge=0.3)


def draw_balloon(easel: Easel, rng: np.random.Generator) -> None:
    wide, wave = rng.uniform(29, 33), rng.uniform(-4, 4)
    string = spline((50, 73), (50 + wave, 82), (50 - wave, 91), (51, 100), closed=False)
    easel.part(string, (0.45, 0.42, 0.40), width=1.5, edge=0)
    easel.part(polygon((50, 67), (55, 75), (45, 75)), tone=0.8)
    body = spline((50, 1), (50 + wide * 0.72, 8), (50 + wide, 31), (50 + wide * 0.66, 55), (52, 70), (48, 70),
                  (50 - wide * 0.66, 55), (50 - wide, 31), (50 - wide * 0.72, 8))  # fmt: skip
    easel.part(body, form=bulge(50, 34, wide + 1, 38), gloss=0.9)


def draw_lamp(easel: Easel, rng: np.random.Generator) -> None:
    top, low = rng.uniform(16, 22), rng.uniform(40, 46)
    metal = ((0.62, 0.48, 0.26), (0.30, 0.30, 0.33), (0.70, 0.70, 0.72))[int(rng.integers(3))]
    easel.part(spline((22, 96), (30, 91), (50, 89), (70, 91), (78, 96), (72, 100), (28, 100)), metal, "bulge")
    easel.part(quad(47, 50, 53, 92), metal, tube(46, 54))
    easel.part(oval(50, 74, 7, 8), metal, "bulge", gloss=0.6)
    easel.part(oval(50, 54, low - 1, 5.5), (1.0, 0.93, 0.68), edge=0)
    shade = np.concatenate([oval(50, 54, low, 6, 0, 180), oval(50, 6, top, 3, 180, 360)])
    easel.part(shade, form=tube(50 - low, 50 + low, 0.8), edge=0.2)
    easel.part(oval(50, 6, top - 1, 2.2), (1.0, 0.93, 0.68), edge=0)


def draw_donut(easel: Easel, rng: np.random.Generator) -> None:
    waves, hole = int(rng.integers(6, 9)), rng.uniform(11, 14)

    def ring(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A torus seen from the front."""
        radius = np.maximum(np.hypot(x - 50, y - 52), 1e-3)
        across = np.clip((2 * radius - hole - 48) / (48 - hole), -1, 1) * 0.85
        return across * (x - 50) / radius, across * (y - 52) / radius

    easel.part(oval(50, 52, 48, 46), DOUGH, ring)
    t = np.linspace(0, 2 * math.pi, 97)
    radius = 40.5 + 2.6 * np.sin(waves * t)
    easel.part(np.stack([50 + radius * np.cos(t), 50.5 + radius * 0.95 * np.sin(t)], 1), form=ring, gloss=0.5)
    easel.part(oval(50, 51.5, hole + 3.5, hole + 3), DOUGH, slope(0, 0.3), tone=0.85)
    easel.cut(oval(50, 52, hole, hole * 0.94))
    colours = (SNOW, (0.98, 0.85, 0.3), (0.4, 0.75, 0.9), (0.95, 0.5, 0.65), (0.5, 0.8, 0.45))
    for k in range(22):
        angle, r = rng.uniform(0, 2 * math.pi), rng.uniform(hole + 8, 35)
        x, y, lean = 50 + r * math.cos(angle), 51 + r * 0.95 * math.sin(angle), rng.uniform(0, math.pi)
        dx, dy = 2.3 * math.cos(lean), 2.3 * math.sin(lean)
        easel.part(polygon((x - dx, y - dy), (x + dx, y + dy)), colours[k % 5], width=1.9, edge=0)
