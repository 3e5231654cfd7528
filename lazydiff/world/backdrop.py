"""The background of a picture: its surfaces, how they meet, and the camera that saw them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from . import abstract, built, landscape, leaves
from .colours import Tone, oklab_to_srgb, srgb_to_oklab
from .easel import Light
from .noise import fractal, smoothstep
from .panel import Panel

Bytes = tuple[int, int, int]
# surface: what paints it, and its tints as word: (colour at the top or far away, colour at the bottom or near)
MATERIALS: dict[str, tuple[Callable, dict[str, tuple[Bytes, Bytes]]]] = {
    "sky": (landscape.paint_sky, {
        "blue": ((74, 146, 228), (206, 230, 248)), "evening": ((104, 86, 152), (252, 186, 128)),
        "night": ((14, 20, 52), (52, 70, 124)), "cloudy": ((150, 160, 172), (216, 220, 224))}),
    "grass": (landscape.paint_grass, {
        "green": ((128, 176, 80), (78, 142, 48)), "dry": ((196, 178, 104), (156, 130, 62)),
        "dark": ((60, 96, 66), (32, 64, 44))}),
    "sea": (landscape.paint_water, {
        "blue": ((70, 140, 198), (24, 88, 150)), "turquoise": ((110, 206, 204), (30, 150, 164)),
        "dark": ((52, 76, 106), (20, 36, 62))}),
    "sand": (landscape.paint_sand, {
        "yellow": ((238, 218, 166), (214, 182, 120)), "orange": ((226, 172, 122), (188, 124, 84)),
        "grey": ((190, 184, 174), (152, 146, 138))}),
    "snow": (landscape.paint_snow, {
        "white": ((236, 240, 246), (250, 251, 253)), "blue": ((186, 206, 234), (214, 228, 246))}),
    "stone": (landscape.paint_soil, {
        "grey": ((164, 166, 168), (128, 130, 132)), "brown": ((150, 124, 100), (112, 88, 68)),
        "dark": ((86, 86, 92), (58, 58, 64))}),
    "foliage": (leaves.paint_foliage, {
        "green": ((72, 122, 52), (118, 166, 76)), "autumn": ((196, 110, 44), (222, 170, 70)),
        "dark": ((34, 66, 44), (62, 100, 62))}),
    "pebbles": (leaves.paint_pebbles, {
        "grey": ((120, 120, 122), (190, 190, 188)), "brown": ((134, 106, 84), (198, 174, 146))}),
    "wood": (built.paint_wood, {
        "light": ((222, 184, 134), (204, 160, 106)), "brown": ((164, 112, 70), (138, 90, 54)),
        "dark": ((98, 68, 52), (72, 48, 36)), "white": ((226, 222, 212), (206, 200, 188))}),
    "bricks": (built.paint_bricks, {
        "red": ((172, 84, 66), (150, 70, 54)), "white": ((226, 222, 214), (206, 200, 190)),
        "brown": ((140, 108, 84), (116, 86, 66))}),
    "tiles": (built.paint_tiles, {
        "white": ((236, 238, 238), (220, 224, 226)), "blue": ((120, 164, 204), (88, 136, 184)),
        "green": ((136, 190, 164), (104, 164, 138)), "grey": ((170, 170, 172), (142, 142, 146))}),
    "wall": (built.paint_wall, {
        "white": ((240, 238, 232), (226, 222, 214)), "blue": ((164, 194, 220), (144, 176, 206)),
        "green": ((174, 204, 176), (154, 186, 156)), "yellow": ((244, 224, 160), (230, 206, 136)),
        "pink": ((240, 200, 196), (226, 180, 176)), "grey": ((150, 154, 160), (128, 132, 138))}),
    "cloth": (built.paint_cloth, {
        "red": ((216, 120, 112), (196, 98, 92)), "blue": ((140, 168, 208), (116, 146, 190)),
        "green": ((150, 186, 146), (126, 164, 122)), "yellow": ((240, 216, 140), (226, 196, 112))}),
    "paper": (built.paint_paper, {
        "white": ((248, 248, 245), (238, 238, 234)), "yellow": ((250, 240, 188), (242, 228, 164)),
        "blue": ((212, 226, 244), (194, 212, 236))}),
}  # fmt: skip
# family: its surfaces from the top; the first of two ends at the horizon, the second is the ground that recedes from it
FAMILIES: dict[str, tuple[str, ...]] = {
    "meadow": ("sky", "grass"), "coast": ("sky", "sea"), "beach": ("sky", "sand"), "winter": ("sky", "snow"),
    "plain of stone": ("sky", "stone"), "garden": ("foliage", "grass"), "yard": ("bricks", "stone"),
    "room": ("wall", "wood"), "kitchen": ("tiles", "wood"), "bath": ("wall", "tiles"), "table": ("wall", "cloth"),
    **{material: (material,) for material in MATERIALS if material != "sky"},
    **{f"any {name}": () for name in abstract.PAINTERS},
}  # fmt: skip
_DAPPLED = 0.12  # of all backgrounds lie in light and shade
GREY: Tone = (128 / 255, 128 / 255, 128 / 255)  # the empty canvas


@dataclass(frozen=True)
class Camera:
    """What a camera does to a picture; all 0 is nothing.

    blur: of the background, in sides of the picture, for a landscape only far away; vignette, falloff: darker towards
    the corners, and away from the light, 0..1; grain: deviation of the noise of its sensor, in grey levels of 255;
    jpeg: the quality at which the background was saved once
    """

    blur: float = 0.0
    vignette: float = 0.0
    falloff: float = 0.0
    grain: float = 0.0
    jpeg: int = 0


@dataclass(frozen=True)
class Backdrop:
    """A background.

    family: a key of FAMILIES; tints: a word for each of its surfaces; horizon: where the lower part begins, in sides of
    the picture (in families of one surface it only matters where `painted` is a half); seed: of all details; painted:
    the part drawn so far, "all", "upper", "lower" or "none"; empty: the colour of the rest
    """

    family: str
    tints: tuple[str, ...]
    horizon: float
    seed: int
    painted: str = "all"
    empty: Tone = GREY
    camera: Camera = field(default=Camera())

    @property
    def receding(self) -> bool:
        return len(FAMILIES[self.family]) == 2

    @property
    def sky(self) -> bool:
        return FAMILIES[self.family][:1] == ("sky",)


def upper_or_lower(backdrop: Backdrop, part: str, size: int) -> np.ndarray:
    """The mask of one part of the picture, bool [size, size]; part: "all", "upper", "lower" or "none"."""
    above = np.arange(size)[:, None] < round(backdrop.horizon * size)
    chosen = {"all": above | True, "upper": above, "lower": ~above, "none": above & False}[part]
    return np.repeat(chosen, size, 1)


def _tinted(rng: np.random.Generator, material: str, word: str) -> landscape.Tints:
    """The two colours of a tint, moved a little and together."""
    shift = rng.normal(0, 1, 3) * (0.025, 0.008, 0.008)
    pair = [srgb_to_oklab(np.array(colour) / 255) + shift for colour in MATERIALS[material][1][word]]
    return oklab_to_srgb(pair[0]).astype(np.float32), oklab_to_srgb(pair[1]).astype(np.float32)


def paint_backdrop(backdrop: Backdrop, light: Light, size: int) -> np.ndarray:
    """The background as a lens sees it, before vignette and grain: float32 [size, size, 3] in 0..1."""
    if backdrop.painted == "none":
        return np.broadcast_to(np.array(backdrop.empty, np.float32), (size, size, 3)).copy()
    rng = np.random.default_rng(backdrop.seed)
    materials = FAMILIES[backdrop.family]
    if not materials:
        painter = abstract.PAINTERS[backdrop.family.removeprefix("any ")]
        image = painter(rng, Panel(size, 0, 1, light)) * light.colour
    else:
        image = _paint_materials(rng, backdrop, light, size)
    if np.random.default_rng((backdrop.seed, 1)).random() < _DAPPLED:
        image = image * _dappled(np.random.default_rng((backdrop.seed, 2)), size)[..., None]
    image = _seen(np.clip(image, 0, 1).astype(np.float32, copy=False), backdrop, size)
    shown = upper_or_lower(backdrop, backdrop.painted, size)[..., None]
    return np.where(shown, image, np.array(backdrop.empty, np.float32))


def _paint_materials(rng: np.random.Generator, backdrop: Backdrop, light: Light, size: int) -> np.ndarray:
    materials = FAMILIES[backdrop.family]
    tints = [_tinted(rng, material, word) for material, word in zip(materials, backdrop.tints, strict=True)]
    streams = rng.spawn(len(materials) + 1)
    if len(materials) == 1:
        return MATERIALS[materials[0]][0](streams[0], Panel(size, 0, 1, light), tints[0]) * light.colour
    above, below = Panel(size, 0, backdrop.horizon, light), Panel(size, backdrop.horizon, 1, light, receding=True)
    upper = MATERIALS[materials[0]][0](streams[0], above, tints[0])
    if materials[0] == "sky" and streams[2].random() < 0.5:
        upper = landscape.add_hills(streams[2], above, upper, tints[1][0])
    lower = MATERIALS[materials[1]][0](streams[1], below, tints[1])
    if backdrop.tints[0] == "night":
        lower = lower * np.array([0.6, 0.65, 0.8], np.float32)
    return np.concatenate([upper, lower]) * light.colour


def _dappled(rng: np.random.Generator, size: int) -> np.ndarray:
    """Light through leaves or past an edge: brightness float32 [size, size]."""
    slope, stretch = rng.uniform(1.3, 2.2), (rng.uniform(0.5, 2), 1.0)
    cover = fractal(rng, (size, size), slope, int(rng.choice((2, 4))), stretch=stretch)
    edge, soft = rng.uniform(-0.7, 0.7), rng.uniform(0.1, 0.6)
    return 1 - np.float32(rng.uniform(0.15, 0.45)) * smoothstep(cover, edge - soft, edge + soft)


def _seen(image: np.ndarray, backdrop: Backdrop, size: int) -> np.ndarray:
    """The image through the lens and the file format of its camera."""
    camera = backdrop.camera
    if not camera.blur and not camera.jpeg:
        return image
    picture = Image.fromarray(np.round(image * 255).astype(np.uint8))
    if camera.blur:
        blurred = picture.filter(ImageFilter.GaussianBlur(camera.blur * size))
        if backdrop.receding:  # sharp again where the ground is near
            y = (np.arange(size)[:, None] + 0.5) / size
            far = np.clip((backdrop.horizon + 0.35 - y) / 0.3, 0, 1) * 255
            picture.paste(blurred, mask=Image.fromarray(np.repeat(far, size, 1).astype(np.uint8)))
        else:
            picture = blurred
    if camera.jpeg:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=camera.jpeg)
        picture = Image.open(file)
    return np.asarray(picture, np.float32) / 255


def finish(image: np.ndarray, backdrop: Backdrop, light: Light) -> np.ndarray:
    """Vignette, falloff and grain over a whole picture, where it is painted: uint8 [size, size, 3]."""
    camera, size = backdrop.camera, len(image)
    if backdrop.painted != "none" and (camera.vignette or camera.falloff or camera.grain):
        at = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        gain = 1 - camera.vignette * 2 * (at[None] ** 2 + at[:, None] ** 2) + camera.falloff * light.side * at[None]
        done = image * gain[..., None]
        if camera.grain:
            rng = np.random.default_rng((backdrop.seed, 3))
            done += rng.standard_normal((size, size, 1), np.float32) * np.float32(camera.grain / 255)
        image = np.where(upper_or_lower(backdrop, backdrop.painted, size)[..., None], done, image)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def random_camera(rng: np.random.Generator) -> Camera:
    blur, vignette, falloff, grain, jpeg = (rng.random() < p for p in (0.35, 0.5, 0.5, 0.3, 0.12))
    return Camera(
        blur=float(rng.uniform(0.001, 0.012)) * blur,
        vignette=float(rng.uniform(0.05, 0.35)) * vignette,
        falloff=float(rng.uniform(0.05, 0.25)) * falloff,
        grain=float(rng.uniform(1, 6)) * grain,
        jpeg=int(rng.integers(35, 90)) * jpeg,
    )


def random_backdrop(rng: np.random.Generator, families: tuple[str, ...] = tuple(FAMILIES)) -> Backdrop:
    """A background; families: those it may be of. All randomness comes from `rng`."""
    likely = np.array([_LIKELY.get(family, 1.0) for family in families])
    family = str(rng.choice(families, p=likely / likely.sum()))
    tints = tuple(str(rng.choice(list(MATERIALS[material][1]))) for material in FAMILIES[family])
    horizon = float(rng.uniform(0.25, 0.6))
    return Backdrop(family, tints, horizon, int(rng.integers(1 << 30)), camera=random_camera(rng))


_LIKELY = {"meadow": 2.5, "coast": 2.0, "beach": 1.5, "room": 2.0, "any leaves": 2.5, "any noise": 2.0,
           "any collage": 3.0, "any matter": 2.0}  # fmt: skip
