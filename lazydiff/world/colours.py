"""Colours are points of OKLab, and their names regions of it (Björn Ottosson, "A perceptual color space", 2020)."""

from __future__ import annotations

import math

import numpy as np

Tone = tuple[float, float, float]  # sRGB, 0..1

# name: lightness, chroma and hue in degrees, each from…to; gaps lie between the regions
HUES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((0.52, 0.61), (0.18, 0.23), (20, 30)),
    "orange": ((0.70, 0.77), (0.15, 0.18), (52, 64)),
    "yellow": ((0.87, 0.92), (0.15, 0.18), (93, 105)),
    "green": ((0.52, 0.68), (0.14, 0.18), (138, 150)),
    "turquoise": ((0.70, 0.80), (0.10, 0.13), (184, 198)),
    "blue": ((0.46, 0.58), (0.16, 0.20), (255, 265)),
    "purple": ((0.42, 0.52), (0.16, 0.20), (298, 310)),
    "pink": ((0.76, 0.83), (0.11, 0.15), (345, 357)),
    "brown": ((0.40, 0.47), (0.07, 0.10), (46, 60)),
    "white": ((0.95, 0.98), (0.00, 0.01), (0, 360)),
    "grey": ((0.60, 0.68), (0.00, 0.01), (0, 360)),
    "black": ((0.24, 0.30), (0.00, 0.015), (0, 360)),
}
_TO_LMS = np.array([
    [1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480],
])  # fmt: skip
_TO_LINEAR = np.array([
    [4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010],
])  # fmt: skip


def oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 of OKLab [..., 3]; colours outside of sRGB are clipped."""
    linear = np.clip((np.asarray(lab) @ _TO_LMS.T) ** 3 @ _TO_LINEAR.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_to_oklab(rgb: np.ndarray) -> np.ndarray:
    """OKLab of sRGB [..., 3] in 0..1."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ np.linalg.inv(_TO_LINEAR).T) @ np.linalg.inv(_TO_LMS).T


def _lch_to_lab(lightness: float, chroma: float, hue: float) -> np.ndarray:
    angle = math.radians(hue)
    return np.array([lightness, chroma * math.cos(angle), chroma * math.sin(angle)])


def random_hue(rng: np.random.Generator, name: str) -> Tone:
    """A colour of that name, sRGB in 0..1."""
    red, green, blue = oklab_to_srgb(_lch_to_lab(*(rng.uniform(*span) for span in HUES[name])))
    return float(red), float(green), float(blue)


def hue_name(rgb: np.ndarray) -> str:
    """The name whose region's middle is nearest in OKLab; rgb: [3] in 0..1."""
    lab = srgb_to_oklab(rgb)
    middles = {name: _lch_to_lab(*(0.5 * (a + b) for a, b in spans)) for name, spans in HUES.items()}
    return min(middles, key=lambda name: float(np.linalg.norm(lab - middles[name])))


def second_tone(rgb: Tone) -> Tone:
    """The colour of stripes and dots on a body: lighter on dark and middle bodies, darker on light ones."""
    lab = srgb_to_oklab(np.array(rgb))
    lab = lab * (0.83, 1.1, 1.1) if lab[0] > 0.84 else lab * (1, 0.5, 0.5) + (0.45 * (1 - lab[0]), 0, 0)
    red, green, blue = oklab_to_srgb(lab)
    return float(red), float(green), float(blue)
