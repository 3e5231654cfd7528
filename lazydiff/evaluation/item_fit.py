"""How close a result comes to what was asked: the asked thing's own render, moved, scaled and lit from either side
until it fits best, is what an eye compares it with; what is neither that nor ground is stray."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..scenes import BOX, LIGHTS, SIZES, render
from ..scenes.sprites import PAD, sprite
from ..world import WorldScene, add_items, finish, paint_backdrop
from .questions import ObjectQuestion

FINEST = 0.5  # px, the last step of a search
STRAY = 16.0  # grey levels, root mean square of the three colours
LARGER = 1.5  # times its size, or as much smaller, a fitted thing may be
NEAR = 24  # ground is also what is as bright as pixels within a share of the picture's side of 1 / NEAR: textures vary
VISIBLE = 3.0  # grey levels that a render changes of the ground
HIGHEST = 60.0  # dB, of which equal pictures have no more


class Pose(NamedTuple):
    """Where a render stands against where it was: px to the right and down, times its size, lit from the other side."""

    right: float = 0.0
    down: float = 0.0
    scale: float = 1.0
    flipped: bool = False


Draw = Callable[[Pose], np.ndarray]  # the whole picture with the asked thing in that pose, uint8 [H, W, 3]


class Fittable(NamedTuple):
    """The asked thing to draw, its side in px, and the picture without it, uint8 [H, W, 3]."""

    draw: Draw
    side: float
    ground: np.ndarray


class ItemFit(NamedTuple):
    """psnr, item_psnr: of a result against the best render, in the hole and where that shows the asked thing, dB
    stray: share of the hole that is neither thing nor ground, 0…1
    """

    psnr: float
    item_psnr: float
    stray: float


def measure_fit(picture: np.ndarray, mask: np.ndarray, asked: Fittable) -> ItemFit:
    """Of a result uint8 [H, W, 3] in a hole bool [H, W]."""
    fitted = asked.draw(best_pose(picture, mask, asked))
    error, shown = distances(picture, fitted, mask), distances(fitted, asked.ground, mask) > VISIBLE
    stray = (error > STRAY) & (distances(picture, nearest_ground(picture, asked.ground), mask) > STRAY)
    return ItemFit(signal_to_noise(error), signal_to_noise(error[shown] if shown.any() else error), float(stray.mean()))


def signal_to_noise(error: np.ndarray) -> float:
    """dB of differences in grey levels."""
    return min(20 * math.log10(255) - 10 * math.log10(max(float(np.square(error).mean()), 1e-9)), HIGHEST)


def nearest_ground(picture: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """What comes nearest to the picture between the darkest and the brightest of the ground around each pixel."""
    reach = len(ground) // NEAR
    pixels = torch.from_numpy(ground.astype(np.float32)).permute(2, 0, 1)[None]
    most, least = (sign * F.max_pool2d(sign * pixels, 2 * reach + 1, 1, reach)[0] for sign in (1, -1))
    return np.clip(picture, least.permute(1, 2, 0).numpy(), most.permute(1, 2, 0).numpy())


def fit_figures(
    pictures: np.ndarray, masks: Sequence[np.ndarray], asked: Sequence[Fittable], ending: str = ""
) -> dict[str, float]:
    """Means over results uint8 [S, H, W, 3]; the share in percent. ending: of the figures' names"""
    fits = [measure_fit(*one) for one in zip(pictures, masks, asked, strict=True)]
    psnr, item_psnr, stray = np.mean(fits, 0).tolist()
    return {f"fit_psnr{ending}": psnr, f"item_psnr{ending}": item_psnr, f"stray_share{ending}": 100 * stray}


def distances(picture: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Of the hole's pixels, in grey levels."""
    difference: np.ndarray = picture[mask].astype(np.float32) - other[mask]
    return np.sqrt(np.square(difference).mean(-1))


def best_pose(picture: np.ndarray, mask: np.ndarray, asked: Fittable) -> Pose:
    """Compass search from the best of a few poses: a step each way in place and size, halved where none is better."""
    known: dict[Pose, float] = {}
    reach = asked.side / 2  # of the search: a thing that had left the hole would fit bare ground

    def allowed(pose: Pose) -> bool:
        return max(abs(pose.right), abs(pose.down)) <= reach and 1 / LARGER <= pose.scale <= LARGER

    def error(pose: Pose) -> float:
        if pose not in known:
            known[pose] = float(np.square(distances(picture, asked.draw(pose), mask)).mean())
        return known[pose]

    step = asked.side / 4
    starts = [Pose(x * step, y * step, 1.0, light) for light in (False, True) for x, y in product((-1, 0, 1), repeat=2)]
    best = min(starts, key=error)
    while step >= FINEST:
        growth = step / asked.side
        near = [
            best._replace(right=best.right + step), best._replace(right=best.right - step),
            best._replace(down=best.down + step), best._replace(down=best.down - step),
            best._replace(scale=best.scale * (1 + growth)), best._replace(scale=best.scale / (1 + growth)),
            best._replace(flipped=not best.flipped),
        ]  # fmt: skip
        better = min(filter(allowed, near), key=error)
        if error(better) < error(best):
            best = better
        else:
            step /= 2
    return best


def world_fittable(scene: WorldScene, target: int, size: int) -> Fittable:
    """An item of the large world, drawn among the others as its scene is."""
    empty = paint_backdrop(scene.backdrop, scene.light, size)
    lights = scene.light, replace(scene.light, side=-scene.light.side)
    rest = [(placed, scene.light) for placed in scene.items]
    asked = scene.items[target]

    def draw(pose: Pose) -> np.ndarray:
        moved = replace(
            asked, x=asked.x + pose.right / size, y=asked.y + pose.down / size, side=asked.side * pose.scale
        )
        image = empty.copy()
        add_items(image, [*rest[:target], (moved, lights[pose.flipped]), *rest[target + 1 :]])
        return finish(image, scene.backdrop, scene.light)

    ground = empty.copy()
    add_items(ground, rest[:target] + rest[target + 1 :])
    return Fittable(draw, asked.side * size, finish(ground, scene.backdrop, scene.light))


def scene_fittable(question: ObjectQuestion) -> Fittable:
    """An object of the small world, which has whole pixels and two sizes."""
    assert question.scene is not None
    ground, placed = render(question.scene, without=question.target), question.placed
    frame = np.pad(ground.astype(np.float32), ((PAD, PAD), (PAD, PAD), (0, 0)))

    def draw(pose: Pose) -> np.ndarray:
        scale = SIZES[placed.thing.size] * pose.scale
        size = min(SIZES, key=lambda name: abs(SIZES[name] - scale))
        thing, (light,) = placed.thing, set(LIGHTS) - {question.light} if pose.flipped else (question.light,)
        drawn = sprite(thing.shape, thing.colour, thing.texture, size, light)
        side, most = BOX + 2 * PAD, len(frame) - BOX - 2 * PAD
        x, y = (min(max(round(at), 0), most) for at in (placed.x + pose.right, placed.y + pose.down))
        image = frame.copy()
        window = image[y : y + side, x : x + side]
        window *= 1 - drawn.shadow
        body = window[PAD:-PAD, PAD:-PAD]
        body *= 1 - drawn.alpha
        body += drawn.colour
        return np.round(image[PAD:-PAD, PAD:-PAD]).astype(np.uint8)

    return Fittable(draw, BOX, ground)
