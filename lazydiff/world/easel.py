"""Drawing one thing: antialiased parts from back to front, each shaded as a surface under one light."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .colours import Tone, second_tone
from .curves import Outline

Form = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # x, y in units → the normal's x and y
OVER = 4  # supersampling along each side
DARKEST = 0.42  # brightness of what turns away from the light


@dataclass(frozen=True)
class Light:
    """Where the light of a scene comes from.

    side: −1 (left) … 1 (right); height: 0.5 (low) … 1 (high); warmth: −1 (bluish) … 1 (golden); shadow: the opacity of
    what things cast, 0..1; softness: the width of its blur, in sides of the thing
    """

    side: float
    height: float
    warmth: float = 0.0
    shadow: float = 0.4
    softness: float = 0.03

    @property
    def direction(self) -> tuple[float, float, float]:
        """The unit vector to the light: x to the right, y down, z to the viewer."""
        x, y, z = 0.75 * self.side, -0.7 * self.height, 0.75
        length = math.hypot(x, y, z)
        return x / length, y / length, z / length

    @property
    def colour(self) -> np.ndarray:
        """What white becomes in it, float32 [3]."""
        return np.array([1 + 0.04 * self.warmth, 1.0, 1 - 0.06 * self.warmth], np.float32)


def flat(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface faces the viewer."""
    return np.zeros_like(x), np.zeros_like(y)


def slope(across: float, down: float) -> Form:
    """The surface leans to one side everywhere alike."""
    return lambda x, y: (np.full_like(x, across), np.full_like(y, down))


def bulge(x: float, y: float, rx: float, ry: float, steep: float = 0.92) -> Form:
    """The surface is an ellipsoid's about a point; steep: 0..1, how far it turns away at the rim."""
    return lambda u, v: (steep * (u - x) / rx, steep * (v - y) / ry)


def tube(x0: float, x1: float, steep: float = 0.9) -> Form:
    """The surface is an upright cylinder's between two sides."""
    return lambda x, y: (steep * (2 * x - x0 - x1) / (x1 - x0), np.zeros_like(y))


def both(first: Form, second: Form) -> Form:
    """Half of one form and half of another: a clump that is round itself and a part of something round."""

    def form(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (a, b), (c, d) = first(x, y), second(x, y)
        return (a + c) / 2, (b + d) / 2

    return form


def hull_of(outline: Outline, steep: float = 0.92) -> Form:
    """The ellipsoid that fills an outline's bounding box."""
    (x0, y0), (x1, y1) = outline.min(0), outline.max(0)
    return bulge((x0 + x1) / 2, (y0 + y1) / 2, max((x1 - x0) / 2, 1e-3), max((y1 - y0) / 2, 1e-3), steep)


@dataclass(frozen=True)
class Coat:
    """What covers a body: its colour, plain, striped or dotted; pitch: of the pattern, in units."""

    colour: Tone
    texture: str = "plain"
    pitch: float = 14.0

    def at(self, x: np.ndarray, y: np.ndarray, scale: float) -> np.ndarray:
        """The colour at places in units, float32 [..., 3] (or [3] where it is one); scale: pixels per unit."""
        first = np.array(self.colour, np.float32)
        if self.texture == "plain":
            return first
        if self.texture == "striped":
            phase = ((0.6 * x + 0.8 * y) / self.pitch) % 1.0
            inside = (np.abs(phase - 0.5) - 0.27) * self.pitch
        else:
            u, v = x / self.pitch, y / self.pitch
            row = np.floor(v)
            u = (u + 0.5 * (row % 2)) % 1.0 - 0.5
            inside = (0.27 - np.hypot(u, v - row - 0.5)) * self.pitch
        share = np.clip(0.5 + inside * scale, 0, 1)[..., None].astype(np.float32)
        return first + share * (np.array(second_tone(self.colour), np.float32) - first)


class Easel:
    """A frame on which one thing is drawn.

    colour: float32 [h, w, 3], premultiplied, 0..1; alpha: float32 [h, w, 1]; left, top: the place of the box's corner
    in the frame, in pixels; scale: pixels per unit of the box; mirrored: the box is seen in a mirror (its light is not)
    """

    def __init__(self, shape: tuple[int, int], corner: tuple[float, float], scale: float, coat: Coat, light: Light):
        self.colour = np.zeros((*shape, 3), np.float32)
        self.alpha = np.zeros((*shape, 1), np.float32)
        self.left, self.top = corner
        self.scale, self.coat, self.light = scale, coat, light
        self.mirrored = False

    def _stencil(self, outline: Outline, width: float | None) -> tuple[Image.Image, int, int] | None:
        """The coverage of an outline, or of a line of that width along it, cut to where it is, with its corner."""
        points = np.array(outline)
        if self.mirrored:
            points[:, 0] = 100 - points[:, 0]
        points = points * self.scale + (self.left, self.top)
        margin = 1 + (0 if width is None else width * self.scale)
        x0, y0 = np.maximum(np.floor(points.min(0) - margin), 0).astype(int)
        x1, y1 = np.minimum(np.ceil(points.max(0) + margin), self.alpha.shape[1::-1]).astype(int)
        if x1 <= x0 or y1 <= y0:
            return None
        large = Image.new("L", ((x1 - x0) * OVER, (y1 - y0) * OVER))
        place = [tuple(p) for p in (points - (x0, y0)) * OVER - 0.5]
        draw = ImageDraw.Draw(large)
        if width is None:
            draw.polygon(place, fill=255)
        else:
            thick = width * self.scale * OVER
            draw.line(place, fill=255, width=max(round(thick), 1), joint="curve")
            for x, y in (place[0], place[-1]):
                draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
        return large.reduce(OVER), int(x0), int(y0)

    def part(self, outline: Outline, paint: Tone | None = None, form: Form | str = "flat", **look: float) -> None:
        """Draws one part; paint: sRGB in 0..1, the coat if not given; form: "flat", "bulge" (fills the outline) or a
        Form; look: tone (darkens), edge (darker rim, 0..1), gloss (0..1), width (a line of so many units instead)."""
        stencil = self._stencil(outline, look.get("width"))
        if stencil is None:
            return
        image, x0, y0 = stencil
        mask = np.asarray(image, np.float32)[..., None] / 255
        h, w = mask.shape[:2]
        y, x = np.ogrid[y0 : y0 + h, x0 : x0 + w]
        x, y = ((x + 0.5 - self.left) / self.scale).astype(np.float32), ((y + 0.5 - self.top) / self.scale)
        x, y = np.broadcast_arrays(100 - x if self.mirrored else x, y.astype(np.float32))
        base = self.coat.at(x, y, self.scale) if paint is None else np.array(paint, np.float32)
        surface = hull_of(outline) if form == "bulge" else flat if isinstance(form, str) else form
        lit = self._lit(base * look.get("tone", 1.0), surface(x, y), look.get("gloss", 0.0))
        edge = look.get("edge", 0.22)
        if edge:
            blurred = image.filter(ImageFilter.GaussianBlur(max(1.3 * self.scale, 0.6)))
            inner = np.clip(np.asarray(blurred, np.float32)[..., None] / 127.5 - 1, 0, 1)
            lit = lit * (1 - edge + edge * inner)
        window = slice(y0, y0 + h), slice(x0, x0 + w)
        self.colour[window] += mask * (lit - self.colour[window])
        self.alpha[window] += mask * (1 - self.alpha[window])

    def cut(self, outline: Outline) -> None:
        """Makes a hole."""
        stencil = self._stencil(outline, None)
        if stencil is not None:
            image, x0, y0 = stencil
            window = slice(y0, y0 + image.height), slice(x0, x0 + image.width)
            kept = 1 - np.asarray(image, np.float32)[..., None] / 255
            self.colour[window] *= kept
            self.alpha[window] *= kept

    def _lit(self, base: np.ndarray, normal: tuple[np.ndarray, np.ndarray], gloss: float) -> np.ndarray:
        """A colour under the light: darker and bluer away from it, lighter towards it, a highlight where glossy."""
        nx, ny = (-normal[0] if self.mirrored else normal[0]), normal[1]
        steep = np.minimum(nx * nx + ny * ny, 0.98)
        nz = np.sqrt(1 - steep)
        lx, ly, lz = self.light.direction
        facing = (nx * lx + ny * ly + nz * lz) / lz  # 1 for what faces the viewer
        bright = np.clip(DARKEST + (1 - DARKEST) * facing, DARKEST - 0.04, 1.4)[..., None].astype(np.float32)
        dark = np.minimum(bright, 1)
        lit = base * (dark - (1 - dark) * np.array([0.06, 0.02, -0.1], np.float32))
        lit = lit + (1 - lit) * (bright - dark) * 0.55
        if gloss:
            hx, hy, hz = lx, ly, lz + 1
            length = math.hypot(hx, hy, hz)
            shine = np.clip((nx * hx + ny * hy + nz * hz) / length, 0, 1)[..., None] ** 40
            lit = lit + (1 - lit) * np.float32(gloss) * shine.astype(np.float32)
        return lit
