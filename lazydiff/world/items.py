"""Things of the world, drawn at any place, size and light, with the shadows they cast."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import creatures, objects, plants
from .colours import HUES, Tone, random_hue
from .easel import Coat, Easel, Light

_DRAWERS: tuple[Callable[[Easel, np.random.Generator], None], ...] = (
    plants.draw_tree, plants.draw_pine, plants.draw_flower, plants.draw_mushroom, plants.draw_cactus,
    plants.draw_apple, plants.draw_pear, creatures.draw_fish, creatures.draw_bird, creatures.draw_cat,
    creatures.draw_butterfly, creatures.draw_cloud, creatures.draw_star, creatures.draw_heart, objects.draw_house,
    objects.draw_car, objects.draw_boat, objects.draw_mug, objects.draw_ball, objects.draw_umbrella,
    objects.draw_balloon, objects.draw_lamp, objects.draw_donut,
)  # fmt: skip
ITEMS = {draw.__name__.removeprefix("draw_"): draw for draw in _DRAWERS}
FLYING = ("butterfly", "cloud", "balloon")  # where there is a sky, they are in it and cast no shadow
PATTERNS = ("plain", "striped", "dotted")
_KEPT = 24  # drawings that are remembered: those of one or two scenes, up to 2 MB each at 512 px
_ROUND = 0.12  # how far a drawing may reach beyond its box, in sides of it


@dataclass(frozen=True)
class Item:
    """What a thing is; equal items are siblings.

    kind: a key of ITEMS; name: a key of HUES; colour: sRGB in 0..1, of that name; texture: one of PATTERNS; seed: of
    its proportions and the side it faces
    """

    kind: str
    name: str
    colour: Tone
    texture: str
    seed: int


@dataclass(frozen=True)
class PlacedItem:
    """An item in a picture, all in sides of the picture: the middle of its foot, and the side of its box.

    support: what its shadow falls on: "ground" (it stands), "wall" (it lies on a surface seen from the front) or "air"
    """

    item: Item
    x: float
    y: float
    side: float
    support: str = "wall"


@dataclass(frozen=True, eq=False)
class Cutout:
    """A window of the canvas: its corner, and what is in it, float32 [h, w, c]."""

    left: int
    top: int
    pixels: np.ndarray

    def window(self, size: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """The part of the canvas that it covers, and its pixels there."""
        h, w = self.pixels.shape[:2]
        x0, y0, x1, y1 = max(self.left, 0), max(self.top, 0), min(self.left + w, size), min(self.top + h, size)
        x1, y1 = max(x1, x0), max(y1, y0)
        own = self.pixels[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left]
        return (slice(y0, y1), slice(x0, x1)), own


def random_item(rng: np.random.Generator, kinds: tuple[str, ...] = tuple(ITEMS)) -> Item:
    name, texture = str(rng.choice(list(HUES))), str(rng.choice(PATTERNS, p=(0.56, 0.22, 0.22)))
    return Item(str(rng.choice(kinds)), name, random_hue(rng, name), texture, int(rng.integers(1 << 30)))


@lru_cache(_KEPT)
def draw_item(placed: PlacedItem, light: Light, size: int) -> Cutout:
    """The item alone on a canvas of size × size pixels: RGBA, premultiplied, 0..1. Cached, must not be written to."""
    scale = placed.side * size / 100
    left, top = placed.x * size - 50 * scale, placed.y * size - 100 * scale
    spare = 100 * scale * _ROUND
    x0, y0 = math.floor(left - spare), math.floor(top - spare)
    shape = math.ceil(top + 100 * scale + spare) - y0, math.ceil(left + 100 * scale + spare) - x0
    rng = np.random.default_rng(placed.item.seed)
    coat = Coat(placed.item.colour, placed.item.texture, float(rng.uniform(11, 16)))
    easel = Easel(shape, (left - x0, top - y0), scale, coat, light)
    easel.mirrored = bool(rng.random() < 0.5) and placed.item.kind != "house"
    ITEMS[placed.item.kind](easel, rng)
    return Cutout(x0, y0, np.concatenate([easel.colour * light.colour, easel.alpha], 2))


@lru_cache(_KEPT)
def cast_shadow(placed: PlacedItem, light: Light, size: int) -> Cutout:
    """How much darker the item makes what it stands or lies on: [h, w, 1], 0..1. Cached, must not be written to."""
    body = draw_item(placed, light, size)
    if placed.support == "air":
        return Cutout(body.left, body.top, np.zeros((0, 0, 1), np.float32))
    side = placed.side * size
    soft = max(light.softness * side, 0.5)
    pad = math.ceil((0.62 if placed.support == "ground" else 0.12) * side + 3 * soft)
    rise = math.ceil(0.12 * side + 3 * soft)
    h, w = body.pixels.shape[:2]
    stencil = Image.new("L", (w + 2 * pad, h + 2 * rise))
    stencil.paste(Image.fromarray(np.round(body.pixels[..., 3] * 255).astype(np.uint8)), (pad, rise))
    if placed.support == "ground":
        foot = placed.y * size - body.top + rise
        shadow = _on_ground(stencil, foot, light, side)
    else:
        away = (-0.055 * light.side * side, 0.05 * light.height * side)
        shadow = stencil.transform(stencil.size, Image.Transform.AFFINE, (1, 0, -away[0], 0, 1, -away[1]),
                                   Image.Resampling.BILINEAR)  # fmt: skip
    shadow = shadow.filter(ImageFilter.GaussianBlur(soft))
    dark = np.asarray(shadow, np.float32)[..., None] * np.float32(light.shadow / 255)
    return Cutout(body.left - pad, body.top - rise, dark)


def _on_ground(stencil: Image.Image, foot: float, light: Light, side: float) -> Image.Image:
    """The stencil laid down on the ground away from the light, behind the foot, and a darker ellipse under the foot."""
    flat, lean = 0.26, -0.5 * light.side / (0.6 + light.height)
    # a point so many pixels above the foot falls `flat` of it behind the foot and `lean` of it to the side
    laid = stencil.transform(
        stencil.size, Image.Transform.AFFINE,
        (1, lean / flat, -lean / flat * foot, 0, 1 / flat, foot - foot / flat),
        Image.Resampling.BILINEAR,
    ).point(lambda v: v * 0.75)  # fmt: skip
    touching = np.asarray(stencil)[max(int(foot - 0.1 * side), 0) : int(foot) + 1].max(0, initial=0)
    across = np.flatnonzero(touching > 127)
    if len(across):
        x0, x1 = float(across[0]) - 0.02 * side, float(across[-1]) + 1 + 0.02 * side
        high = 0.035 * side + 0.05 * (x1 - x0)
        ImageDraw.Draw(laid).ellipse((x0, foot - high * 1.1, x1, foot + high * 0.5), fill=255)
    return laid
