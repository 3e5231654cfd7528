"""Samples: a picture, a hole in it and what to put there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .backgrounds import CANVAS, TOKEN, half
from .captions import EMPTY, describe, random_object_caption, siblings, surface_caption
from .masks import object_mask
from .scene import Placed, Scene, footprint, is_clear, random_scene, random_thing, render
from .sprites import BOX

KINDS: dict[str, float] = {"object": 0.62, "background": 0.20, "surface": 0.06, "blank": 0.12}


@dataclass(frozen=True, eq=False)
class Sample:
    """One task with its answer.

    image: the answer, uint8 [96, 96, 3], always render(scene); mask: bool [96, 96], True = hole; kind: one of KINDS;
    target: the index in scene.things of the object to regenerate, None where the answer is an empty ground.
    """

    scene: Scene
    image: np.ndarray
    mask: np.ndarray
    caption: str
    kind: str
    target: int | None = None


def object_sample(rng: np.random.Generator, scene: Scene, target: int, caption: str | None = None) -> Sample:
    """Regenerate one object; caption: drawn from those that fit the scene if not given."""
    mask = object_mask(rng, scene, scene.things[target])
    caption = caption or random_object_caption(rng, scene, target)
    return Sample(scene, render(scene), mask, caption, "object", target)


def removal_sample(rng: np.random.Generator, scene: Scene, target: int) -> Sample:
    """Show the ground where one object of the scene stood, the scene continuing without it."""
    mask = object_mask(rng, scene, scene.things[target], spare=1)
    scene = replace(scene, things=scene.things[:target] + scene.things[target + 1 :])
    return Sample(scene, render(scene), mask, EMPTY, "background")


def _random_target(rng: np.random.Generator, scene: Scene) -> int:
    """Any object; one unlike the others in every second scene that has one, so that captions win over the context."""
    lone = [i for i in range(len(scene.things)) if not siblings(scene, i)]
    if len(scene.things) > 1 and lone and rng.random() < 0.5:
        return lone[0]
    return int(rng.integers(len(scene.things)))


def _free_place(rng: np.random.Generator, scene: Scene) -> Placed | None:
    """An object that could stand in the scene without overlapping another's box."""
    thing = scene.things[0].thing if scene.things else random_thing(rng)
    steps = range(0, CANVAS - BOX + 1, TOKEN)
    free = [(x, y) for y in steps for x in steps if is_clear(x, y, scene.things)]
    return Placed(thing, *free[int(rng.integers(len(free)))]) if free else None


def _object(rng: np.random.Generator) -> Sample:
    scene = random_scene(rng, siblings=1)
    return object_sample(rng, scene, _random_target(rng, scene))


def _background(rng: np.random.Generator) -> Sample:
    """Half of the holes are where an object of the layout would stand, half on any free place."""
    scene = random_scene(rng)
    if rng.random() < 0.1:
        scene = _partly_painted(rng, scene)
    extra = _free_place(rng, scene)
    if scene.things and (extra is None or rng.random() < 0.5):
        return removal_sample(rng, scene, int(rng.integers(len(scene.things))))
    assert extra is not None  # an empty scene has free places
    return removal_sample(rng, replace(scene, things=(*scene.things, extra)), len(scene.things))


def _surface_sample(rng: np.random.Generator) -> Sample:
    """Paint a part of the ground: the rest is there already, or still grey; or all of it."""
    scene = random_scene(rng)
    part = str(rng.choice(("upper", "lower", "all"), p=(0.35, 0.35, 0.3)))
    mask = half(scene.background.horizon, part)
    painted = "all" if rng.random() < 0.5 else part
    clear = tuple(p for p in scene.things if not (footprint(p, scene.light) & mask).any())
    things = clear if rng.random() < 0.4 else ()
    scene = replace(scene, background=replace(scene.background, painted=painted), things=things)
    caption = surface_caption(scene.background, part, tinted=rng.random() < 0.7)
    return Sample(scene, render(scene), mask, caption, "surface")


def _partly_painted(rng: np.random.Generator, scene: Scene) -> Scene:
    painted = str(rng.choice(("none", "upper", "lower"), p=(0.6, 0.2, 0.2)))
    return replace(scene, background=replace(scene.background, painted=painted))


def _blank(rng: np.random.Generator) -> Sample:
    """An object on a canvas that is still empty or half empty, in full words."""
    scene = _partly_painted(rng, random_scene(rng, siblings=1))
    kept = scene.things if rng.random() < 0.4 else scene.things[:1]
    scene = replace(scene, things=kept)
    target = int(rng.integers(len(kept)))
    return replace(object_sample(rng, scene, target, describe(kept[target].thing)), kind="blank")


_MAKERS = {"object": _object, "background": _background, "surface": _surface_sample, "blank": _blank}


def random_sample(rng: np.random.Generator, kind: str | None = None) -> Sample:
    """A training sample; kind: one of KINDS, drawn by its probability if not given. All randomness comes from `rng`."""
    if kind is None:
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind not in _MAKERS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    return _MAKERS[kind](rng)
