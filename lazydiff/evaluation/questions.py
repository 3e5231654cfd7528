"""What the model is asked: held-out scenes with a hole, a caption, and the answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
import torch

from ..pipeline.fit import Crop
from ..scenes import (
    COLOURS,
    KINDS,
    Placed,
    Scene,
    Thing,
    blank_canvas,
    describe,
    footprint,
    object_mask,
    random_sample,
    random_scene,
    random_thing,
    removal_sample,
    render,
    siblings,
)

EQUAL = 3  # at least so many equal objects, the hidden one included


@dataclass(frozen=True, eq=False)
class Question:
    """A canvas with a hole and what to put there.

    image: the answer, uint8 [H, W, 3]; the canvas is its visible part; mask: bool [H, W], True = hole
    """

    image: np.ndarray
    mask: np.ndarray
    caption: str

    @property
    def canvas(self) -> np.ndarray:
        """What the model is given: the hole is grey, so that the answer cannot leak through it."""
        return np.where(self.mask[..., None], blank_canvas()[0, 0], self.image)


@dataclass(frozen=True, eq=False)
class ObjectQuestion(Question):
    """A question about one object: `placed` should be there, or in a removal should be gone.

    light: the side it comes from; former: the colour it had before its siblings were recoloured, "" if they were not
    siblings: the visible objects that it is one of; scene, target: the answer, and its place there (not of removals)
    """

    placed: Placed
    light: str
    former: str = ""
    siblings: tuple[Placed, ...] = ()
    scene: Scene | None = None
    target: int = 0


def family(rng: np.random.Generator) -> tuple[Scene, int]:
    """A scene with at least EQUAL equal objects, and one of them."""
    scene = random_scene(rng, siblings=EQUAL)
    return scene, int(rng.choice([i for i in range(len(scene.things)) if len(siblings(scene, i)) >= EQUAL - 1]))


def about(scene: Scene, target: int, mask: np.ndarray, caption: str, former: str = "") -> ObjectQuestion:
    equal = tuple(scene.things[i] for i in siblings(scene, target))
    placed = scene.things[target]
    return ObjectQuestion(render(scene), mask, caption, placed, scene.light, former, equal, scene, target)


def sibling_pair(rng: np.random.Generator, number: int) -> tuple[ObjectQuestion, ObjectQuestion]:
    """One of equal objects is hidden; and the same hole with "another one" among siblings of another colour: only the
    context has changed."""
    scene, target = family(rng)
    question = ask_for_another(rng, scene, target, number)
    kind = question.placed.thing

    unseen = sorted(COLOURS.keys() - {p.thing.colour for p in scene.things})
    swapped = with_other_things(scene, kind, replace(kind, colour=str(rng.choice(unseen))))
    return question, about(swapped, target, question.mask, "another one", former=kind.colour)


def with_other_things(scene: Scene, thing: Thing, other: Thing) -> Scene:
    """The scene with another thing in place of all that are equal to one."""
    return replace(scene, things=tuple(replace(p, thing=other) if p.thing == thing else p for p in scene.things))


def ask_for_another(rng: np.random.Generator, scene: Scene, target: int, number: int) -> ObjectQuestion:
    """An object is hidden, and the caption keeps its colour to itself, every other time its shape too."""
    hidden = scene.things[target]
    named = f"another {hidden.thing.shape}" if number % 4 == 1 else describe(hidden.thing, texture=False, colour=False)
    caption = "another one" if number % 2 == 0 else named
    return about(scene, target, object_mask(rng, scene, hidden, spare=1), caption)


def blank(rng: np.random.Generator) -> ObjectQuestion:
    """Shape and colour in words on a canvas that is still grey everywhere."""
    scene = random_scene(rng, siblings=1)
    placed = replace(scene.things[0], thing=replace(random_thing(rng), texture="plain"))
    scene = replace(scene, background=replace(scene.background, painted="none"), things=(placed,))
    return about(scene, 0, object_mask(rng, scene, placed), describe(placed.thing))


def against_siblings(rng: np.random.Generator) -> ObjectQuestion:
    """The place of one of equal objects, but in words another shape and another colour."""
    return ask_for_other(rng, *family(rng))


def ask_for_other(rng: np.random.Generator, scene: Scene, target: int) -> ObjectQuestion:
    """In an object's place, in words, one of another shape and another colour."""
    kind = scene.things[target].thing
    thing = kind
    while thing.shape == kind.shape or thing.colour == kind.colour:
        thing = replace(random_thing(rng), texture="plain", size=kind.size)
    placed = replace(scene.things[target], thing=thing)
    scene = replace(scene, things=(*scene.things[:target], placed, *scene.things[target + 1 :]))
    return about(scene, target, object_mask(rng, scene, placed, spare=1), describe(thing))


def removal(rng: np.random.Generator) -> ObjectQuestion:
    """The ground where an object of the layout stood: among siblings, the place where one would be expected."""
    scene = random_scene(rng, siblings=1)
    return ask_for_ground(rng, scene, int(rng.integers(len(scene.things))))


def ask_for_ground(rng: np.random.Generator, scene: Scene, target: int) -> ObjectQuestion:
    """The ground in an object's place."""
    sample = removal_sample(rng, scene, target)
    return ObjectQuestion(sample.image, sample.mask, sample.caption, scene.things[target], scene.light)


def ordinary(rng: np.random.Generator) -> Question:
    """A sample as in training, of an object or of empty ground."""
    kinds = {kind: KINDS[kind] for kind in ("object", "background")}
    weights = np.array(list(kinds.values()))
    sample = random_sample(rng, str(rng.choice(list(kinds), p=weights / weights.sum())))
    return Question(sample.image, sample.mask, sample.caption)


def stream(seed: int, number: int) -> np.random.Generator:
    """Stream `number` of the evaluation. Its spawn key lies beyond the four numbers that training draws scenes from, so
    that no stream of training is repeated, whatever its seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))


def object_questions(seed: int, scenes: int) -> dict[str, list[ObjectQuestion]]:
    """`scenes` questions of each kind that is judged by rules; a longer list begins with the shorter one."""
    pairs, *others = (stream(seed, number) for number in range(1, 5))
    first, swapped = zip(*(sibling_pair(pairs, i) for i in range(scenes)), strict=True)
    makers = {"caption_blank": blank, "caption_against_siblings": against_siblings, "removal": removal}
    made = {kind: [make(rng) for _ in range(scenes)] for (kind, make), rng in zip(makers.items(), others, strict=True)}
    return {"sibling": list(first), "swapped": list(swapped), **made}


def distant_siblings(seed: int, scenes: int) -> list[ObjectQuestion]:
    """The first `scenes` sibling questions whose siblings, shadows included, lie outside the square around the hole."""
    rng = stream(seed, 1)
    return unseen_by_crop((sibling_pair(rng, number)[0] for number in count()), scenes)


def unseen_by_crop(questions: Iterable[ObjectQuestion], scenes: int) -> list[ObjectQuestion]:
    """The first `scenes` of them whose siblings, shadows included, lie outside the square around the hole."""

    def distant(question: ObjectQuestion) -> bool:
        crop = Crop.around(torch.from_numpy(question.mask)[None])
        places = [torch.from_numpy(footprint(sibling, question.light)) for sibling in question.siblings]
        return not any(crop.of(place).any() for place in places)

    return list(islice(filter(distant, questions), scenes))


def ordinary_questions(seed: int, scenes: int) -> list[Question]:
    rng = stream(seed, 5)
    return [ordinary(rng) for _ in range(scenes)]
