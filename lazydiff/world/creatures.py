"""Animals and what floats; every function draws one from back to front, `rng` varying its proportions."""

from __future__ import annotations

import math

import numpy as np

from .curves import oval, polygon, spline
from .easel import Easel, both, bulge, slope

INK = (0.13, 0.11, 0.12)
SNOW = (0.98, 0.98, 0.96)
BEAK = (0.96, 0.62, 0.14)
ROSE = (0.93, 0.58, 0.58)
BELLY = (0.97, 0.92, 0.84)


def _eye(easel: Easel, x: float, y: float, radius: float) -> None:
    easel.part(oval(x, y, radius, radius), SNOW, edge=0.25)
    easel.part(oval(x, y + radius * 0.05, radius * 0.62, radius * 0.66), INK, edge=0)
    easel.part(oval(x - radius * 0.2, y - radius * 0.25, radius * 0.22, radius * 0.22), SNOW, edge=0)


def draw_fish(easel: Easel, rng: np.random.Generator) -> None:
    fat = rng.uniform(0.88, 1.1)

    def about(*points: tuple[float, float]) -> np.ndarray:
        return spline(*((x, 58 + (y - 58) * fat) for x, y in points))

    easel.part(about((66, 58), (84, 38), (99, 30), (93, 46), (92, 58), (93, 70), (99, 86), (84, 78)), tone=0.85)
    easel.part(about((30, 42), (38, 26), (54, 20), (70, 30), (68, 46)), tone=0.8)
    easel.part(about((40, 78), (48, 94), (62, 96), (60, 78)), tone=0.8)
    body = about((3, 60), (10, 46), (26, 34), (46, 32), (64, 42), (78, 57), (64, 74), (46, 84), (26, 82), (10, 73))
    easel.part(body, form=bulge(40, 58, 42, 27 * fat), gloss=0.3)
    easel.part(spline((31, 44), (36, 58), (31, 74), closed=False), tone=0.6, width=1.6, edge=0)
    easel.part(about((42, 60), (52, 52), (60, 56), (62, 68), (54, 72), (46, 68)), tone=0.78, form=slope(0.2, 0.1))
    easel.part(spline((5, 66), (11, 69), (15, 67), closed=False), INK, width=1.6, edge=0)
    _eye(easel, 19, 53, 6.2)


def draw_bird(easel: Easel, rng: np.random.Generator) -> None:
    fat, tail = rng.uniform(0.94, 1.06), rng.uniform(-6, 6)
    for x in (44.0, 54.0):
        easel.part(polygon((x, 82), (x, 97)), BEAK, width=2.4)
        easel.part(polygon((x - 6, 99), (x, 96.5), (x + 5, 99)), BEAK, width=2.2)
    easel.part(polygon((68, 56), (98, 42 + tail), (99, 54 + tail), (94, 60 + tail), (66, 74)), tone=0.74)
    easel.part(polygon((17, 32), (1, 39), (17, 43)), BEAK, slope(0, -0.2))
    easel.part(polygon((3, 39), (17, 39.5), (17, 43)), (0.8, 0.44, 0.08), edge=0)
    body = spline((30, 12), (44, 16), (50, 30), (62, 42), (78, 56), (74, 74), (58, 86 * fat), (40, 86 * fat), (24, 74),
                  (18, 58), (16, 40), (18, 22))  # fmt: skip
    easel.part(body, form=bulge(46, 52, 36, 42))
    belly = spline((22, 56), (34, 58), (46, 72), (50, 84), (40, 84.5), (27, 74))
    easel.part(belly, BELLY, bulge(46, 52, 36, 42), edge=0.1)
    wing = spline((42, 46), (56, 44), (72, 56), (88, 70), (70, 72), (54, 72), (44, 62))
    easel.part(wing, form=slope(0.15, 0.15), tone=0.8, edge=0.35)
    for k in range(3):
        easel.part(spline((54 + 6 * k, 68 - 2 * k), (66 + 5 * k, 66), (75 + 4 * k, 68), closed=False), tone=0.5,
                   width=1.1, edge=0)  # fmt: skip
    _eye(easel, 29, 29, 5.4)


def draw_cat(easel: Easel, rng: np.random.Generator) -> None:
    wide = rng.uniform(0.94, 1.06)
    easel.part(spline((70, 94), (92, 90), (95, 72), (86, 62), (89, 55), closed=False), form=bulge(80, 75, 30, 40),
               width=8.5)  # fmt: skip
    body = spline((36, 50), (64, 50), (74, 70), (80, 90), (74, 100), (50, 101), (26, 100), (20, 90), (26, 70))
    easel.part(body, form=bulge(50, 76, 34, 36))
    easel.part(spline((50, 58), (58, 66), (58, 82), (50, 90), (42, 82), (42, 66)), BELLY, edge=0.1)
    for x in (40, 60):
        easel.part(oval(x, 96, 8.5, 5), form="bulge", edge=0.3)
    for side in (-1, 1):
        ear = [(50 + side * dx * wide, y) for dx, y in ((31, 26), (28, 1), (7, 14))]
        easel.part(polygon(*ear), form=slope(0.2 * side, -0.1))
        inner = [(50 + side * dx * wide, y) for dx, y in ((27, 21), (25.5, 7), (13, 15))]
        easel.part(polygon(*inner), ROSE, edge=0.1)
    head = spline((50, 11), (70, 14), (83, 28), (84, 42), (72, 55), (50, 60), (28, 55), (16, 42), (17, 28), (30, 14))
    head = (head - (50, 0)) * (wide, 1) + (50, 0)
    easel.part(head, form=bulge(50, 36, 36 * wide, 27), edge=0.28)
    easel.part(oval(50, 49, 11, 8), BELLY, bulge(50, 36, 36, 27), edge=0.1)
    for side in (-1, 1):
        middle = 50 + side * 15 * wide
        easel.part(oval(middle, 35, 6.4, 7.2), (0.75, 0.86, 0.35), edge=0.4)
        easel.part(oval(middle, 35, 2.6, 6.4), INK, edge=0)
        easel.part(oval(middle - 1.4, 32, 1.5, 1.5), SNOW, edge=0)
        easel.part(spline((50, 49), (50 + side * 3, 53), (50 + side * 7, 51), closed=False), INK, width=1.2, edge=0)
        for k in (0, 1):
            easel.part(polygon((50 + side * 12, 47 + 3 * k), (50 + side * 35, 43 + 8 * k)), INK, width=0.8, edge=0)
    easel.part(polygon((46, 43.5), (54, 43.5), (50, 48.5)), ROSE, edge=0.3)


def draw_butterfly(easel: Easel, rng: np.random.Generator) -> None:
    large, small = rng.uniform(0.94, 1.06), rng.uniform(0.92, 1.08)
    for side in (-1, 1):
        lean = slope(0.35 * side, -0.1)
        lower = [(50 + side * dx * small, 54 + dy * small)
                 for dx, dy in ((2, 0), (24, 2), (38, 14), (36, 34), (22, 42), (8, 26))]  # fmt: skip
        upper = [(50 + side * dx * large, 52 + dy * large)
                 for dx, dy in ((2, 4), (6, -18), (24, -40), (44, -44), (48, -28), (42, -6), (24, 6))]  # fmt: skip
        easel.part(spline(*lower), form=lean, tone=0.86, edge=0.6)
        easel.part(spline(*upper), form=lean, edge=0.6)
        easel.part(oval(50 + side * 33 * large, 52 - 28 * large, 6.5, 6), SNOW, edge=0.3)
        easel.part(oval(50 + side * 24 * small, 54 + 22 * small, 5, 5), SNOW, edge=0.3)
        easel.part(spline((50, 26), (50 + side * 6, 14), (50 + side * 14, 8), closed=False), INK, width=1.4, edge=0)
        easel.part(oval(50 + side * 14, 8, 2, 2), INK, edge=0)
    easel.part(spline((50, 22), (54, 28), (53.5, 60), (50, 88), (46.5, 60), (46, 28)), (0.24, 0.18, 0.16), "bulge")


def draw_cloud(easel: Easel, rng: np.random.Generator) -> None:
    shift = rng.uniform(-4, 4)
    puffs = ((18, 74, 16, 14), (83, 75, 15, 13), (40 + shift, 54, 20, 20), (62 + shift, 60, 19, 18), (50, 72, 28, 18),
             (32, 83, 15, 12), (52, 85, 17, 13), (70, 82, 15, 12))  # fmt: skip
    whole = bulge(50, 70, 56, 40, 0.75)
    for x, y, rx, ry in puffs:
        easel.part(oval(x, y, rx, ry), form=both(bulge(x, y, rx, ry, 0.75), whole), edge=0.06)


def draw_star(easel: Easel, rng: np.random.Generator) -> None:
    waist = rng.uniform(0.42, 0.5)
    rim = [
        (50 + 49 * r * math.sin(math.pi * i / 5), 53 - 49 * r * math.cos(math.pi * i / 5))
        for i, r in enumerate([1.0, waist] * 5)
    ]
    for i in range(10):  # facets: each point is a ridge that falls to both sides
        (x0, y0), (x1, y1) = rim[i], rim[(i + 1) % 10]
        nx, ny = (x0 + x1) / 2 - 50, (y0 + y1) / 2 - 53
        length = math.hypot(nx, ny)
        facet = polygon((50, 53), (x0, y0), (x1, y1))
        easel.part(facet, form=slope(0.5 * nx / length, 0.5 * ny / length), edge=0)


def draw_heart(easel: Easel, rng: np.random.Generator) -> None:
    tall = rng.uniform(0.94, 1.06)
    t = np.linspace(0, 2 * math.pi, 97)
    height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = np.stack([50 + 2.95 * 16 * np.sin(t) ** 3, 49 - 2.95 * tall * height], 1)
    easel.part(outline, form=bulge(50, 46, 50, 52), gloss=0.7, edge=0.3)
