"""Objects as small pictures: drawn 8 times larger, shaded from the light, reduced once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .palette import COLOURS, Colour, texture_mask
from .shapes import SHAPES, Points

BOX = 24  # px, the side of every object's box
PAD = 8  # px around the box that a shadow may reach
SIZES: dict[str, float] = {"large": 1.0, "small": 17 / 22}
LIGHTS: tuple[str, ...] = ("left", "right")
_OVER = 8  # supersampling
_SHADOW = 0.42  # opacity of the darkest shadow


@dataclass(frozen=True, eq=False)
class Sprite:
    """One drawn object: its body over its box, its shadow over the box padded by PAD."""

    colour: np.ndarray  # float32 [24, 24, 3], premultiplied, 0..255
    alpha: np.ndarray  # float32 [24, 24, 1], 0..1
    shadow: np.ndarray  # float32 [40, 40, 1], 0..1 darkening


class _Canvas:
    """The supersampled drawing of one object (see shapes.Sketch)."""

    def __init__(self, paint: Image.Image, scale: float) -> None:
        self.paint, self.scale = paint, scale
        self.rgb = Image.new("RGB", paint.size)
        self.alpha = Image.new("L", paint.size)

    def _mask(self, points: Points) -> Image.Image:
        half = BOX / 2
        mask = Image.new("L", self.alpha.size)
        place = [tuple((half + (v - half) * self.scale) * _OVER for v in point) for point in points]
        ImageDraw.Draw(mask).polygon(place, fill=255)
        return mask

    def body(self, points: Points, tone: float = 1.0) -> None:
        mask = self._mask(points)
        self.rgb.paste(self.paint.point(lambda v: v * tone), mask=mask)
        self.alpha.paste(255, mask=mask)

    def detail(self, points: Points, colour: Colour) -> None:
        mask = self._mask(points)
        self.rgb.paste(colour, mask=mask)
        self.alpha.paste(255, mask=mask)

    def cut(self, points: Points) -> None:
        self.alpha.paste(0, mask=self._mask(points))


def _paint(colour: str, texture: str) -> Image.Image:
    """The body's colour and texture over the whole supersampled box."""
    at = (np.arange(BOX * _OVER) + 0.5) / _OVER
    second = texture_mask(texture, at[None, :], at[:, None])
    return Image.fromarray(np.array(COLOURS[colour], np.uint8)[second.astype(int)])


def _shade(light: str) -> np.ndarray:
    """Brightness over the supersampled box, 1 on the lit upper side: float32 [192, 192, 1]."""
    away = np.linspace(0, 1, BOX * _OVER, dtype=np.float32)
    side = away if light == "left" else away[::-1]
    return (1.04 - 0.22 * side[None, :] - 0.1 * away[:, None])[..., None]


def _reduce(image: np.ndarray) -> np.ndarray:
    h, w, c = image.shape
    return image.reshape(h // _OVER, _OVER, w // _OVER, _OVER, c).mean((1, 3))


def _draw(shape: str, colour: str, texture: str, size: str) -> _Canvas:
    canvas = _Canvas(_paint(colour, texture), SIZES[size])
    SHAPES[shape](canvas)
    return canvas


@cache
def _relief(shape: str, size: str, light: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What colours do not change: supersampled alpha and brightness [192, 192, 1], and the shadow [40, 40, 1]."""
    stencil = _draw(shape, "white", "plain", size).alpha
    alpha = np.asarray(stencil, np.float32)[..., None] / 255
    inner = np.asarray(stencil.filter(ImageFilter.MinFilter(_OVER + 1)), np.float32)[..., None] / 255
    brightness = _shade(light) * (0.58 + 0.42 * inner)  # the darker rim keeps white objects on white paper readable

    side = (BOX + 2 * PAD) * _OVER
    away = 3 if light == "left" else -3
    cast = Image.new("L", (side, side))
    cast.paste(stencil, ((PAD + away) * _OVER, PAD * _OVER + 5 * _OVER // 2))
    cast = cast.filter(ImageFilter.GaussianBlur(1.2 * _OVER))
    return alpha, brightness, _reduce(np.asarray(cast, np.float32)[..., None] * (_SHADOW / 255))


@cache
def sprite(shape: str, colour: str, texture: str, size: str, light: str) -> Sprite:
    """The drawn object, cached: arrays are shared and must not be written to."""
    alpha, brightness, shadow = _relief(shape, size, light)
    rgb = np.asarray(_draw(shape, colour, texture, size).rgb, np.float32)
    return Sprite(_reduce(np.clip(rgb * brightness, 0, 255) * alpha), _reduce(alpha), shadow)
