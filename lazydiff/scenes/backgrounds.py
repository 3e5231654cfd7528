"""The grounds objects stand on: smooth gradients with a few faint lines, no noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from .palette import Colour

CANVAS = 96  # px
TOKEN = 8  # px, the grid everything is snapped to
GREY = 128  # the empty canvas
HORIZONS: tuple[int, ...] = (3, 4, 5, 6)  # token rows

# surface: its tints as (word, colour at the top, colour at the bottom)
SURFACES: dict[str, list[tuple[str, Colour, Colour]]] = {
    "sky": [("blue", (86, 164, 240), (204, 232, 252)), ("evening", (124, 92, 160), (252, 188, 132)),
            ("night", (16, 22, 58), (58, 78, 134))],
    "grass": [("green", (140, 196, 84), (86, 152, 50)), ("golden", (182, 160, 74), (138, 112, 44)),
              ("dark", (54, 92, 70), (30, 60, 50))],
    "sea": [("blue", (60, 140, 200), (22, 92, 158)), ("purple", (170, 126, 150), (92, 84, 140)),
            ("dark", (38, 64, 108), (16, 34, 70))],
    "sand": [("yellow", (244, 222, 166), (216, 180, 114)), ("orange", (232, 176, 126), (190, 124, 84)),
             ("dark", (124, 116, 112), (86, 80, 86))],
    "table": [("wooden", (198, 144, 90), (164, 108, 62)), ("dark", (112, 76, 54), (78, 50, 38)),
              ("white", (226, 220, 210), (196, 188, 176))],
    "tray": [("grey", (196, 200, 206), (166, 170, 178)), ("blue", (150, 178, 206), (120, 148, 182)),
             ("green", (164, 196, 172), (130, 166, 142))],
    "paper": [("white", (246, 246, 242), (234, 234, 230)), ("yellow", (252, 244, 190), (242, 228, 160)),
              ("blue", (212, 228, 246), (192, 212, 236))],
    "cloth": [("red", (236, 196, 190), (226, 176, 172)), ("blue", (190, 208, 232), (168, 190, 222)),
              ("green", (200, 224, 194), (178, 208, 174))],
}
# family: its surfaces from the top; the first of two ends at the horizon
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "meadow": ("sky", "grass"),
    "coast": ("sky", "sea"),
    "beach": ("sky", "sand"),
    "table": ("table",),
    "tray": ("tray",),
    "paper": ("paper",),
    "cloth": ("cloth",),
}
TINTS = 3


@dataclass(frozen=True)
class Background:
    """A ground.

    family: one of BACKGROUNDS; tint: 0..2; horizon: the token row below which the lower part begins (in families of one
    surface it only matters where `painted` is a half); painted: the part drawn so far, the rest is empty grey.
    """

    family: str
    tint: int
    horizon: int
    painted: str = "all"

    @property
    def landscape(self) -> bool:
        return len(BACKGROUNDS[self.family]) == 2

    @property
    def stage(self) -> tuple[int, int, int, int]:
        """Where objects naturally stand: x0, y0, x1, y1 in px (feet below the horizon, inside the tray)."""
        if self.landscape:
            return 0, TOKEN * self.horizon - 2 * TOKEN, CANVAS, CANVAS
        if self.family == "tray":
            return TOKEN, TOKEN, CANVAS - TOKEN, CANVAS - TOKEN
        return 0, 0, CANVAS, CANVAS


def half(horizon: int, part: str) -> np.ndarray:
    """The mask of one part of the canvas, bool [96, 96]; part: "all", "upper", "lower" or "none"."""
    rows = np.arange(CANVAS)[:, None] < TOKEN * horizon
    chosen = {"all": rows | True, "upper": rows, "lower": ~rows, "none": rows & False}[part]
    return np.repeat(chosen, CANVAS, 1)


def random_background(rng: np.random.Generator) -> Background:
    family = str(rng.choice(list(BACKGROUNDS)))
    return Background(family, int(rng.integers(TINTS)), int(rng.choice(HORIZONS)))


def _gradient(surface: str, tint: int, top: int, bottom: int) -> np.ndarray:
    """float32 [96, 96, 3]; the gradient runs from row top to row bottom."""
    _, upper, lower = SURFACES[surface][tint]
    t = np.clip((np.arange(CANVAS, dtype=np.float32) - top) / (bottom - top - 1), 0, 1)[:, None, None]
    image = np.array(upper, np.float32) * (1 - t) + np.array(lower, np.float32) * t
    return np.repeat(image, CANVAS, 1)


def _surface(surface: str, tint: int, top: int, bottom: int, light: str) -> np.ndarray:
    """One surface with its faint details: float32 [96, 96, 3]."""
    image = _gradient(surface, tint, top, bottom)
    y, x = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)
    if surface == "sky":  # sun or moon on the side the light comes from
        centre = 10 if light == "left" else CANVAS - 1 - 10
        far = np.hypot(x - centre, y - 10)[..., None]
        glow = np.array([(255, 244, 190), (255, 214, 150), (226, 230, 246)][tint], np.float32)
        image += (glow - image) * np.clip(np.clip(6.5 - far, 0, 1) + 0.35 * np.exp(-far / 7), 0, 1)
    elif surface == "grass":  # tufts
        lean = np.abs((x + 8 * (y // 8 % 2)) % 16 - 8)
        tuft = (np.abs(lean - (5 - y % 8) * 0.5) < 0.7) & (y % 8 >= 2) & (y % 8 < 6)
        image *= 1 - 0.1 * tuft[..., None]
    elif surface == "sea":  # wave crests
        crest = 4 + 1.6 * np.sin((x + 8 * (y // 8 % 2)) * (2 * np.pi / 16))
        image += 26 * np.clip(1 - np.abs(y % 8 - crest), 0, 1)[..., None]
    elif surface == "sand":  # ripples
        ripple = 8 + 2 * np.sin(x * (2 * np.pi / 32))
        image *= 1 - 0.07 * np.clip(1 - np.abs(y % 16 - ripple), 0, 1)[..., None]
    elif surface in ("table", "tray"):
        planks = _gradient("table", tint, top, bottom)
        planks *= (1 + 0.03 * (1 - 2 * (y // 16 % 2)))[..., None]
        planks *= 1 - 0.22 * (y % 16 == 15)[..., None]
        image = _tray(image, planks, x, y) if surface == "tray" else planks
    elif surface == "paper":  # ruled
        image *= 1 - np.array([0.16, 0.1, 0.02], np.float32) * (y % 16 == 15)[..., None]
        image *= 1 - np.array([0.02, 0.22, 0.2], np.float32) * (x == 12)[..., None]
    elif surface == "cloth":  # gingham
        image *= 1 - 0.07 * ((x // 16 % 2) + (y // 16 % 2))[..., None]
    return image


def _tray(image: np.ndarray, planks: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A round-cornered tray with a raised rim on the planks."""
    middle = (CANVAS - 1) / 2
    corner = 8.0
    reach = np.hypot(*(np.maximum(np.abs(v - middle) - (45.5 - corner), 0) for v in (x, y))) - corner  # < 0 inside
    reach = reach[..., None]
    image = np.where(reach < -4, image, image * 0.72)
    image = np.where((reach >= -4) & (reach < -2.6), image * 0.8, image)
    outside = np.clip(reach + 0.5, 0, 1)
    return image * (1 - outside) + planks * (1 - 0.3 * np.clip(1 - reach / 3, 0, 1)) * outside


@cache
def _ground(family: str, tint: int, edge: int, light: str) -> np.ndarray:
    """All of a ground, float32 [96, 96, 3]; edge: the row where the first of two surfaces ends."""
    first, *second = BACKGROUNDS[family]
    image = _surface(first, tint, 0, edge, light)
    for surface in second:
        image = np.concatenate([image[:edge], _surface(surface, tint, edge, CANVAS, light)[edge:]])
    falloff = np.linspace(1.04, 0.96, CANVAS, dtype=np.float32)[:: 1 if light == "left" else -1]
    return np.clip(image * falloff[None, :, None], 0, 255)


def paint_background(background: Background, light: str) -> np.ndarray:
    """The empty ground, float32 [96, 96, 3] in 0..255; it may be shared and must not be written to."""
    edge = TOKEN * background.horizon if background.landscape else CANVAS
    ground = _ground(background.family, background.tint, edge, light)
    if background.painted == "all":
        return ground
    return np.where(half(background.horizon, background.painted)[..., None], ground, np.float32(GREY))
