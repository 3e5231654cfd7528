"""Skies and grounds under them; every function paints one panel, float32 [h, w, 3] in 0..1, between two colours."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .colours import oklab_to_srgb, srgb_to_oklab
from .noise import fractal, lerp, resized, smoothstep
from .panel import Panel

Tints = tuple[np.ndarray, np.ndarray]  # the surface's colour at the top (or far) and at the bottom (or near), [3]


def ramp(panel: Panel, tints: Tints) -> np.ndarray:
    """From one colour to the other, evenly for the eye."""
    far, near = (srgb_to_oklab(tint) for tint in tints)
    rows = oklab_to_srgb(far + (near - far) * panel.down)
    return np.repeat(rows[:, None].astype(np.float32), panel.size, 1)


def paint_sky(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    image = ramp(panel, tints)
    x, y = panel.places
    sun_x, sun_y = 0.5 + panel.light.side * rng.uniform(0.2, 0.6), rng.uniform(0.02, 0.25)
    away = np.hypot(x - sun_x, y - sun_y)
    dark = float(tints[0].mean()) < 0.3
    if dark:
        for _ in range(int(rng.integers(10, 50))):
            _star(rng, image, panel)
    if rng.random() < 0.5:
        glow = np.array([0.9, 0.92, 1.0] if dark else [1.0, 0.95, 0.8], np.float32)
        disc = np.clip(0.5 + (rng.uniform(0.03, 0.05) - away) * panel.size, 0, 1)
        image = lerp(image, glow, np.clip(disc + 0.4 * np.exp(-away / 0.12), 0, 1))
    if rng.random() < 0.7:
        noise = fractal(rng, panel.shape, rng.uniform(0.9, 1.4), 4, stretch=(rng.uniform(1.2, 2.6), 1.0))
        edge = rng.uniform(-0.6, 1.2)
        cover = smoothstep(noise, edge, edge + rng.uniform(0.5, 1.4)) * np.float32(rng.uniform(0.4, 0.95))
        slant = np.gradient(noise, axis=0) - panel.light.side * np.gradient(noise, axis=1)
        shade = np.clip(0.6 + 0.2 * slant * (panel.size / 64), 0, 1)
        white, grey = tints[1] * 0.25 + (0.3 if dark else 0.75), tints[0] * 0.45 + (0.06 if dark else 0.42)
        image = lerp(image, lerp(np.asarray(grey, np.float32), np.asarray(white, np.float32), shade), cover)
    return image


def _star(rng: np.random.Generator, image: np.ndarray, panel: Panel) -> None:
    x, y, radius = rng.uniform(0, panel.size), rng.uniform(0, 0.8) * panel.shape[0], rng.uniform(0.8, 2.0) / 512
    reach = max(int(3 * radius * panel.size), 1)
    x0, y0 = max(int(x) - reach, 0), max(int(y) - reach, 0)
    v, u = np.mgrid[y0 : min(int(y) + reach + 1, image.shape[0]), x0 : min(int(x) + reach + 1, panel.size)]
    shine = np.exp(-((u + 0.5 - x) ** 2 + (v + 0.5 - y) ** 2) / (radius * panel.size) ** 2)[..., None]
    window = image[y0 : y0 + shine.shape[0], x0 : x0 + shine.shape[1]]
    window += (1 - window) * (0.8 * shine).astype(np.float32)


def add_hills(rng: np.random.Generator, panel: Panel, sky: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """One to three ranges of hills in front of a sky; ground: the colour that they take on when near, [3]."""
    layers = int(rng.integers(1, 4))
    jagged = rng.uniform(1.0, 1.8)
    for i in range(layers):
        profile = fractal(rng, (8, 512), jagged, 4)[4]
        height = (rng.uniform(0.1, 0.3) + rng.uniform(0.02, 0.09) * profile) * (1 - 0.3 * i) * panel.shape[0]
        line = resized(np.ascontiguousarray(np.maximum(height, 1)[None]), (1, panel.size))
        over = np.clip(line - (panel.shape[0] - np.arange(panel.shape[0])[:, None]) + 0.5, 0, 1)
        haze = 0.75 - 0.6 * (i + 1) / layers
        colour = ground * 0.8 * (1 - haze) + sky[-1].mean(0) * haze
        mottled = colour * (1 + 0.06 * (1 - haze) * fractal(rng, panel.shape, 1.0, 8)[..., None])
        sky = sky + (mottled - sky) * over[..., None]
    return sky


def paint_grass(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    patches, upright = panel.field(rng, 1.1), panel.field(rng, 0.2, 64, stretch=(0.5, 2.0))
    image = ramp(panel, tints) * (1 + 0.07 * patches + 0.07 * upright + 0.04 * panel.grain(rng))[..., None]
    blades = int(rng.choice((0, 800, 2000), p=(0.2, 0.3, 0.5)))
    return _blades(rng, panel, np.clip(image, 0, 1), blades) if blades else image


def _blades(rng: np.random.Generator, panel: Panel, image: np.ndarray, count: int) -> np.ndarray:
    """Blades of grass from far to near, each lit or in shade."""
    h, w = panel.shape
    canvas = Image.fromarray((image * 255).astype(np.uint8)).resize((2 * w, 2 * h), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    down = np.sort(rng.random(count) ** (0.7 if panel.receding else 1.0))
    x, lean, tone = rng.random(count), rng.normal(0, 0.35, count), rng.normal(1.02, 0.13, count)
    long = rng.uniform(0.02, 0.05) * rng.uniform(0.5, 1.2, count) * (0.2 + 0.8 * down if panel.receding else 0.7)
    root = np.stack([x * w, (down * 1.04) * h], 1) * 2
    tip = root + np.stack([lean * long, -long], 1) * 2 * panel.size
    half = np.stack([long * 0.07, long * 0], 1) * 2 * panel.size
    at = (np.minimum(root[:, 1] / 2, h - 1).astype(int), np.minimum(root[:, 0] / 2, w - 1).astype(int))
    colours = np.clip(image[at] * tone[:, None] * (255, 255, 235), 0, 255).astype(int)
    outlines = np.concatenate([root - half, root + half, tip], 1)
    for outline, colour in zip(outlines.tolist(), colours.tolist(), strict=True):
        draw.polygon(outline, fill=tuple(colour))
    return np.asarray(canvas.reduce(2), np.float32) / 255


def paint_water(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    if panel.receding:
        waves = panel.field(rng, rng.uniform(0.5, 0.9), 16, stretch=(3.0, 0.8))
        waves = 0.8 * waves + 0.6 * panel.field(rng, 0.4, 64, stretch=(3.0, 0.8))
        crest = smoothstep(waves, 0.9, 2.2) * (0.35 + 0.65 * panel.down)
        image = ramp(panel, tints) * (1 + 0.10 * waves[..., None])
        return lerp(image, np.array([0.95, 0.98, 1.0], np.float32), crest * np.float32(rng.uniform(0.2, 0.6)))
    folds = fractal(rng, panel.shape, 1.3, int(rng.choice((4, 8))), 64)
    lines = np.exp(-np.abs(folds) * 7) + 0.6 * np.exp(-np.abs(fractal(rng, panel.shape, 1.3, 8, 64)) * 7)
    image = ramp(panel, tints) * (1 + 0.08 * fractal(rng, panel.shape, 1.2)[..., None])
    return lerp(image, np.array([0.92, 1.0, 1.0], np.float32), np.clip(lines * rng.uniform(0.2, 0.5), 0, 1))


def paint_sand(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    u, v, scale = panel.ground
    warp = panel.field(rng, 1.5)
    pitch, turn = rng.uniform(0.03, 0.09), rng.uniform(-0.5, 0.5)
    ripples = np.sin(2 * np.pi * ((v + turn * u) / pitch + 0.7 * warp)) * np.minimum(1, 1.5 * scale) ** 2
    depth = 0.045 * float(rng.random() < 0.6)
    return ramp(panel, tints) * (1 + depth * ripples + 0.03 * warp + 0.04 * panel.grain(rng))[..., None]


def paint_snow(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    drifts = panel.field(rng, 1.7)
    blue = np.array([0.90, 0.95, 1.04], np.float32)
    return lerp(ramp(panel, tints), ramp(panel, tints) * blue * 0.9, smoothstep(drifts, -0.5, 1.5)) * (
        1 + 0.015 * panel.grain(rng)[..., None])  # fmt: skip


def paint_soil(rng: np.random.Generator, panel: Panel, tints: Tints) -> np.ndarray:
    """Stone, earth, concrete: noise of two scales."""
    coarse, fine = panel.field(rng, rng.uniform(0.8, 1.3)), panel.grain(rng)
    spots = smoothstep(panel.field(rng, 0.6, 16), 1.1, 2.0) * np.float32(rng.uniform(0, 0.25))
    return ramp(panel, tints) * (1 + 0.08 * coarse + 0.04 * fine - spots)[..., None]
