"""Harder questions: what can be seen is of another size than what is asked for, and stands off the token grid.

In the scenes of the training equal objects have one size, and all objects stand on the grid. What is to be drawn does
so too, so that the models can draw it and the rules of the other questions judge it; what there is to see does not.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np

from ..scenes import BOX, CANVAS, SIZES, TOKEN, Placed, Scene, is_clear
from .questions import (
    ObjectQuestion,
    ask_for_another,
    ask_for_ground,
    ask_for_other,
    family,
    stream,
    unseen_by_crop,
)


def uneven_family(rng: np.random.Generator) -> tuple[Scene, int]:
    """A scene with equal objects, and one of them: all others are of another size and off the token grid."""
    while True:
        scene, target = family(rng)
        [size] = SIZES.keys() - {scene.things[target].thing.size}
        things = list(scene.things)
        for i in [*range(target), *range(target + 1, len(things))]:
            places = off_grid(things, i)
            if not places:
                break
            x, y = places[int(rng.integers(len(places)))]
            things[i] = Placed(replace(things[i].thing, size=size), x, y)
        else:
            return replace(scene, things=tuple(things)), target


def off_grid(things: list[Placed], number: int) -> list[tuple[int, int]]:
    """Corners less than a token away from an object's, both ways off the grid, with room for its box."""
    others = [*things[:number], *things[number + 1 :]]
    columns, rows = (near(corner) for corner in (things[number].x, things[number].y))
    return [(x, y) for y in rows for x in columns if is_clear(x, y, others)]


def near(corner: int) -> list[int]:
    return [at for at in range(corner - TOKEN + 1, corner + TOKEN) if at % TOKEN and 0 <= at <= CANVAS - BOX]


def is_sibling(other: Placed, hidden: Placed) -> bool:
    """Whether they are equal but for their size."""
    return other != hidden and replace(other.thing, size=hidden.thing.size) == hidden.thing


def hard_questions(seed: int, scenes: int) -> dict[str, list[ObjectQuestion]]:
    """`scenes` questions of each kind that has siblings; a longer list begins with the shorter one.

    Where they are to be followed, they lie outside the square around the hole, as those of `distant_siblings`.
    """
    following, *others = (stream(seed, number) for number in (7, 8, 9))

    def follow(number: int) -> ObjectQuestion:
        scene, target = uneven_family(following)
        question = ask_for_another(following, scene, target, number)
        return replace(question, siblings=tuple(p for p in scene.things if is_sibling(p, question.placed)))

    makers = {"caption_against_siblings": ask_for_other, "removal": ask_for_ground}
    made = {
        kind: [ask(rng, *uneven_family(rng)) for _ in range(scenes)]
        for (kind, ask), rng in zip(makers.items(), others, strict=True)
    }
    return {"sibling": unseen_by_crop(map(follow, count()), scenes), **made}
