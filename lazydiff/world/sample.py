"""Samples of the world: a picture, a hole in it and what to put there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .backdrop import FAMILIES, GREY, Backdrop, random_backdrop, upper_or_lower
from .colours import Tone
from .holes import free_hole, hole_around
from .items import random_item
from .layout import box_overlap, place_item, random_world
from .phrases import BACKGROUND, describe_backdrop, describe_item, equal_items, random_item_caption
from .scene import WorldScene, draw_scene, item_footprint

SAMPLE_KINDS: dict[str, float] = {"object": 0.58, "background": 0.10, "scenery": 0.14, "surface": 0.06, "blank": 0.12}


@dataclass(frozen=True, eq=False)
class WorldSample:
    """One task with its answer.

    mask: bool [size, size], True = hole; kind: one of SAMPLE_KINDS; target: the index in scene.items of the item to
    regenerate, None where the answer is background
    """

    scene: WorldScene
    mask: np.ndarray
    caption: str
    kind: str
    target: int | None = None

    @cached_property
    def image(self) -> np.ndarray:
        """The answer, uint8 [size, size, 3]."""
        return draw_scene(self.scene, len(self.mask))


def ask_for_item(
    rng: np.random.Generator, scene: WorldScene, target: int, size: int, caption: str | None = None
) -> WorldSample:
    """Regenerate one item; caption: drawn from those that fit the scene if not given."""
    mask = hole_around(rng, scene, target, size)
    caption = caption or random_item_caption(rng, scene, target)
    return WorldSample(scene, mask, caption, "object", target)


def ask_for_removal(rng: np.random.Generator, scene: WorldScene, target: int, size: int) -> WorldSample:
    """Show what is behind one item, the scene continuing without it."""
    mask = hole_around(rng, scene, target, size, spare=1)
    rest = replace(scene, items=scene.items[:target] + scene.items[target + 1 :])
    return WorldSample(rest, mask, BACKGROUND, "background")


def _chosen(rng: np.random.Generator, scene: WorldScene) -> int:
    """Any item; one unlike the others in every second scene that has one, so that captions win over the picture."""
    lone = [i for i in range(len(scene.items)) if not equal_items(scene, i)]
    if len(scene.items) > 1 and lone and rng.random() < 0.5:
        return lone[int(rng.integers(len(lone)))]
    return int(rng.integers(len(scene.items)))


def _item_sample(rng: np.random.Generator, size: int) -> WorldSample:
    scene = random_world(rng, size=size)
    return ask_for_item(rng, scene, _chosen(rng, scene), size)


def _removal_sample(rng: np.random.Generator, size: int) -> WorldSample:
    """About half of the holes are where an item of the layout stood, half where one of its kind could stand."""
    scene = random_world(rng, size=size)
    target = int(rng.integers(len(scene.items)))
    model = scene.items[target]
    extra = place_item(rng, scene.backdrop, model.item, model.side)
    if all(box_overlap(extra, placed) < 0.1 for placed in scene.items) and rng.random() < 0.7:
        scene, target = replace(scene, items=(*scene.items, extra)), len(scene.items)
    return ask_for_removal(rng, scene, target, size)


def _scenery(rng: np.random.Generator, size: int) -> WorldSample:
    """Continue a background of any sort into a hole of any form."""
    while True:
        scene = random_world(rng, 0, size)
        if rng.random() < 0.5:
            scene = replace(scene, items=())
        mask = free_hole(rng, scene, size)
        if mask.mean() > 0.004:
            return WorldSample(scene, mask, BACKGROUND, "scenery")


def _named_backdrop(rng: np.random.Generator) -> Backdrop:
    return random_backdrop(rng, tuple(family for family, surfaces in FAMILIES.items() if surfaces))


def _surface_part(rng: np.random.Generator, size: int) -> WorldSample:
    """Paint a surface by its name: half of the picture or all of it, on an empty or a painted canvas, or in a hole."""
    scene = replace(random_world(rng, size=size), backdrop=_named_backdrop(rng))
    backdrop, part = scene.backdrop, str(rng.choice(("upper", "lower", "all"), p=(0.35, 0.35, 0.3)))
    painted, empty = str(rng.choice(("all", part))), _empty_colour(rng)
    mask = upper_or_lower(backdrop, part, size)
    if rng.random() < 0.3:
        rows = {"upper": (0.0, backdrop.horizon), "lower": (backdrop.horizon, 1.0), "all": (0.0, 1.0)}[part]
        hole = free_hole(rng, replace(scene, items=()), size, rows)
        if hole.mean() > 0.004 and (part != "all" or not backdrop.receding):
            mask, painted = hole, "all"
    clear = tuple(p for p in scene.items if not (item_footprint(p, scene.light, size) & mask).any())
    kept = clear if rng.random() < 0.4 else ()
    scene = replace(scene, backdrop=replace(backdrop, painted=painted, empty=empty), items=kept)
    caption = describe_backdrop(backdrop, part, tinted=bool(rng.random() < 0.7))
    return WorldSample(scene, mask, caption, "surface")


def _empty_colour(rng: np.random.Generator) -> Tone:
    """Grey as the empty canvas, or white, or black."""
    value = rng.choice((GREY[0], 1.0, 0.0), p=(0.6, 0.3, 0.1))
    return (float(value),) * 3


def _blank_canvas_sample(rng: np.random.Generator, size: int) -> WorldSample:
    """An item on a canvas that is still empty or half empty, in full words."""
    scene = random_world(rng, size=size)
    painted = str(rng.choice(("none", "upper", "lower"), p=(0.6, 0.2, 0.2)))
    scene = replace(scene, backdrop=replace(scene.backdrop, painted=painted, empty=_empty_colour(rng)))
    if rng.random() < 0.6:
        only = scene.items[int(rng.integers(len(scene.items)))]
        scene = replace(scene, items=(replace(only, item=random_item(rng, (only.item.kind,))),))
    target = int(rng.integers(len(scene.items)))
    caption = describe_item(scene.items[target].item)
    return replace(ask_for_item(rng, scene, target, size, caption), kind="blank")


def on_plain_ground(rng: np.random.Generator, sample: WorldSample) -> WorldSample:
    """The same task on one colour, on which things are learned sooner than where most of a picture cannot be known;
    samples that ask for grounds stay as they are."""
    if sample.kind in ("scenery", "surface"):
        return sample
    red, green, blue = np.clip(rng.beta(0.7, 0.7) + rng.normal(0, 0.12, 3), 0, 1).tolist()
    backdrop = replace(sample.scene.backdrop, painted="none", empty=(red, green, blue))
    return replace(sample, scene=replace(sample.scene, backdrop=backdrop))


_TASKS: dict[str, Callable[[np.random.Generator, int], WorldSample]] = {
    "object": _item_sample, "background": _removal_sample, "scenery": _scenery, "surface": _surface_part,
    "blank": _blank_canvas_sample,
}  # fmt: skip


def random_world_sample(rng: np.random.Generator, size: int, kind: str | None = None) -> WorldSample:
    """A training sample of size × size pixels; kind: one of SAMPLE_KINDS, drawn by its probability if not given. All
    randomness comes from `rng`."""
    if kind is None:
        kind = str(rng.choice(list(SAMPLE_KINDS), p=list(SAMPLE_KINDS.values())))
    if kind not in _TASKS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(SAMPLE_KINDS)}")
    return _TASKS[kind](rng, size)
