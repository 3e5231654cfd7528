"""Outlines in a box of 100 × 100 units, x to the right, y down, things standing on y = 100."""

from __future__ import annotations

import math

import numpy as np

Outline = np.ndarray  # float [N, 2]


def polygon(*points: tuple[float, float]) -> Outline:
    return np.array(points, float)


def quad(x0: float, y0: float, x1: float, y1: float) -> Outline:
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def oval(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Outline:
    """An ellipse, or its arc between two angles in degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, end, 73))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def spline(*points: tuple[float, float], closed: bool = True) -> Outline:
    """A smooth curve through the points (Catmull–Rom)."""
    p = np.array(points, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, 12, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2) if closed else np.concatenate([curve.reshape(-1, 2), p[-1:]])


def turned(outline: Outline, degrees: float, x: float, y: float) -> Outline:
    """The outline turned clockwise about a point."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (outline - (x, y)) @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
