"""Plants and fruit; every function draws one from back to front, `rng` varying its proportions."""

from __future__ import annotations

import math

import numpy as np

from .curves import oval, polygon, quad, spline, turned
from .easel import Easel, both, bulge, slope, tube

BARK = (0.44, 0.29, 0.18)
LEAF = (0.28, 0.56, 0.22)
CREAM = (0.95, 0.89, 0.78)
CLAY = (0.76, 0.42, 0.28)


def draw_tree(easel: Easel, rng: np.random.Generator) -> None:
    wide, low = rng.uniform(0.88, 1.08), rng.uniform(-3, 4)
    easel.part(spline((41, 101), (46, 90), (46, 55), (54, 55), (54, 90), (60, 101), (50, 98)), BARK, tube(43, 57))
    easel.part(spline((50, 74), (56, 66), (66, 58), closed=False), BARK, width=3.2)
    clumps = ((27, 50, 19, 16), (73, 51, 19, 15), (50, 57, 23, 14), (34, 30, 20, 18), (66, 30, 20, 18),
              (50, 42, 25, 20), (50, 18, 19, 16), (60, 44, 17, 13), (38, 47, 15, 12))  # fmt: skip
    whole = bulge(50, 36, 52 * wide, 44)
    for i, (across, y, rx, ry) in enumerate(clumps):
        x = 50 + (across - 50) * wide
        ripple = 1 + 0.05 * np.sin(np.arange(73) * (2 * math.pi / 72) * 9 + i)[:, None]
        outline = oval(0, 0, rx * wide, ry) * ripple + (x, y + low * 0.5)
        easel.part(outline, form=both(bulge(x, y, rx * wide, ry), whole), edge=0.16)


def draw_pine(easel: Easel, rng: np.random.Generator) -> None:
    tiers, spread = int(rng.integers(3, 5)), rng.uniform(0.9, 1.08)
    easel.part(quad(45, 84, 55, 100), BARK, tube(44, 56))
    for i in range(tiers):
        share = 1 - i / tiers
        half, bottom = (12 + 28 * share) * spread, 90 - 74 * i / tiers * 0.82
        top = max(2.0, bottom - 42)
        teeth = [
            (50 + half * (1 - 2 * k / 8), bottom + (3.5 if k % 2 else -2.5) + 3.5 * math.sin(math.pi * k / 8))
            for k in range(9)
        ]
        easel.part(polygon((50, top), *teeth), form=tube(50 - half, 50 + half, 0.8), tone=0.8 + 0.2 * i / (tiers - 1))


def draw_flower(easel: Easel, rng: np.random.Generator) -> None:
    petals, long = int(rng.integers(5, 9)), rng.uniform(16, 20)
    easel.part(spline((51, 100), (48, 80), (51, 45), closed=False), LEAF, width=4.2)
    for side in (-1, 1):
        leaf = [(50 + side * dx, y) for dx, y in ((0, 94), (10, 78), (25, 72), (29, 74), (22, 86), (10, 93))]
        easel.part(spline(*leaf), LEAF, slope(0.3 * side, -0.2), edge=0.3)
    wide = min(0.5 * long, 2.3 * long / petals)
    for i in range(petals):
        petal = turned(oval(50, 33 - long * 0.98, wide * 1.25, long * 0.86), 360 * i / petals, 50, 33)
        easel.part(petal, form=bulge(50, 33, 48, 48), edge=0.4)
    centre = ((0.96, 0.77, 0.2), (0.42, 0.26, 0.15))[int(rng.integers(2))]
    easel.part(oval(50, 33, 9.5, 9.5), centre, "bulge", edge=0.3)


def draw_mushroom(easel: Easel, rng: np.random.Generator) -> None:
    tall, wide = rng.uniform(-6, 6), rng.uniform(0.88, 1.02)
    rim = 56 + tall
    stem = spline((40, rim - 4), (40, 78), (35, 96), (42, 101), (58, 101), (65, 96), (60, 78), (60, rim - 4))
    easel.part(stem, CREAM, tube(34, 66))
    easel.part(oval(50, rim, 47 * wide, 9), (0.80, 0.70, 0.58), slope(0, 0.4))
    for k in range(-5, 6):
        gill = polygon((50 + k * 3, rim - 6), (50 + k * 8 * wide, rim + 8 * math.sqrt(1 - k * k / 36)))
        easel.part(gill, (0.66, 0.55, 0.44), width=0.8, edge=0)
    cap = spline((3, rim), (8, rim - 24), (26, rim - 46), (50, rim - 53), (74, rim - 46), (92, rim - 24), (97, rim),
                 (88, rim + 3), (50, rim - 3.5), (12, rim + 3))  # fmt: skip
    cap = (cap - (50, 0)) * (wide, 1) + (50, 0)
    easel.part(cap, form=bulge(50, rim - 4, 52 * wide, 52), gloss=0.35)


def draw_cactus(easel: Easel, rng: np.random.Generator) -> None:
    left, right = rng.uniform(44, 56), rng.uniform(36, 50)
    arms = [((50, left + 10), (30, left + 10), (24, left + 4), (23, left - 16)),
            ((50, right + 12), (70, right + 12), (76, right + 6), (77, right - 12))]  # fmt: skip
    for arm in arms:
        tip = arm[-1][0]
        easel.part(spline(*arm, closed=False), form=tube(tip - 8, tip + 8, 0.7), width=12)
    body = polygon((50, 18), (50, 84))
    easel.part(body, form=tube(38, 62), width=23)
    for k in (-6.5, 0.0, 6.5):
        easel.part(polygon((50 + k, 14 + abs(k)), (50 + k * 1.1, 84)), tone=0.62, width=1.1, edge=0)
    for i in range(14):
        x, y = 50 + (-9.5, -3.2, 3.2, 9.5)[i % 4], 15.0 + 4.6 * i
        easel.part(polygon((x - 1.5, y + 1), (x + 1.5, y - 1)), CREAM, width=0.8, edge=0)
    easel.part(polygon((31, 80), (69, 80), (63, 100), (37, 100)), CLAY, tube(30, 70))
    easel.part(quad(28, 75, 72, 83), CLAY, tube(26, 74))


def draw_apple(easel: Easel, rng: np.random.Generator) -> None:
    wide, low = rng.uniform(0.94, 1.04), rng.uniform(-3, 3)
    body = spline((50, 28), (66, 21), (86, 28), (94, 50), (87, 76 + low), (70, 97), (57, 99), (50, 97), (43, 99),
                  (30, 97), (13, 76 + low), (6, 50), (14, 28), (34, 21))  # fmt: skip
    body = (body - (50, 0)) * (wide, 1) + (50, 0)
    easel.part(body, form=bulge(50, 58, 47 * wide, 43), gloss=0.75)
    easel.part(oval(50, 28.5, 13, 4), tone=0.6, edge=0.1)
    easel.part(spline((50, 31), (51, 18), (56, 7), closed=False), BARK, width=3.6)
    easel.part(spline((53, 20), (62, 7), (80, 5), (84, 8), (74, 18), (62, 22)), LEAF, slope(0.2, -0.4), edge=0.3)


def draw_pear(easel: Easel, rng: np.random.Generator) -> None:
    neck, wide = rng.uniform(14, 18), rng.uniform(0.94, 1.06)
    body = spline((50, 16), (50 + neck * 0.8, 20), (50 + neck, 36), (72, 52), (82, 74), (72, 95), (50, 100), (28, 95),
                  (18, 74), (28, 52), (50 - neck, 36), (50 - neck * 0.8, 20))  # fmt: skip
    body = (body - (50, 0)) * (wide, 1) + (50, 0)
    easel.part(body, form=bulge(50, 66, 36 * wide, 56), gloss=0.6)
    easel.part(spline((50, 19), (50, 11), (45, 3), closed=False), BARK, width=3.4)
    easel.part(spline((50, 13), (60, 3), (76, 4), (70, 13), (60, 17)), LEAF, slope(0.2, -0.3), edge=0.3)
