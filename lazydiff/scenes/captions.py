"""What a sample is asked for in words: a closed set of phrases."""

from __future__ import annotations

from itertools import product

import numpy as np

from .backgrounds import BACKGROUNDS, SURFACES, TINTS, Background
from .palette import COLOURS, TEXTURES
from .scene import Scene, Thing
from .shapes import SHAPES

EMPTY = "background"


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def describe(thing: Thing, texture: bool = True, colour: bool = True) -> str:
    """ "a striped blue tree"; a plain texture has no word, and either word may be left out."""
    words = [thing.texture] if texture and thing.texture != "plain" else []
    words += [thing.colour] if colour else []
    return with_article(" ".join([*words, thing.shape]))


def surface_caption(background: Background, part: str, tinted: bool = True) -> str:
    """ "blue sky", "sea", "blue sky over green grass"; part: "upper", "lower" or "all"."""
    names = [f"{SURFACES[s][background.tint][0]} {s}" if tinted else s for s in BACKGROUNDS[background.family]]
    chosen = {"upper": names[:1], "lower": names[-1:], "all": names}[part]
    return " over ".join(chosen)


_PARTIAL = ((False, False), (False, False), (False, True), (True, False))  # texture, colour; the shape alone twice


def siblings(scene: Scene, target: int) -> list[int]:
    """The other objects equal to the target in shape, colour, texture and size."""
    kind = scene.things[target].thing
    return [i for i, p in enumerate(scene.things) if i != target and p.thing == kind]


def object_captions(scene: Scene, target: int) -> dict[str, list[str]]:
    """The captions that may ask for this object, by form: "full", "partial", "another", "another one".

    What a caption leaves out must be found in the context: the texture's word is dropped only where equal objects
    remain, the colour's also where the object stands alone, and an object unlike the others keeps all of its words.
    Equal objects must outnumber those a caption could be confused with: of the same shape, for "another one" of any.
    """
    thing = scene.things[target].thing
    same, others = len(siblings(scene, target)), len(scene.things) - 1
    alike = sum(p.thing.shape == thing.shape for p in scene.things) - 1
    forms = {"full": [describe(thing)]}
    if 2 * same > alike:
        forms["partial"] = [describe(thing, *kept) for kept in _PARTIAL]
        forms["another"] = [f"another {thing.shape}"]
        if 2 * same > others:
            forms["another one"] = ["another one"]
    elif not others:
        forms["partial"] = [describe(thing, colour=False)]
    return forms


_WEIGHTS = {"full": 0.35, "partial": 0.30, "another": 0.15, "another one": 0.20}


def random_object_caption(rng: np.random.Generator, scene: Scene, target: int) -> str:
    forms = object_captions(scene, target)
    weights = np.array([_WEIGHTS[form] for form in forms])
    phrases = forms[str(rng.choice(list(forms), p=weights / weights.sum()))]
    return phrases[int(rng.integers(len(phrases)))]


def all_captions(limit: int | None = None) -> list[str]:
    """Every phrase of the world, without repeats; limit: only the first so many."""
    named = {
        describe(Thing(shape, colour, texture, "large"), colour=kept)
        for shape, colour, texture, kept in product(SHAPES, COLOURS, TEXTURES, (True, False))
    }
    grounds = {
        surface_caption(Background(family, tint, 3), part, tinted)
        for family, tint, part, tinted in product(BACKGROUNDS, range(TINTS), ("upper", "lower", "all"), (True, False))
    }
    phrases = [EMPTY, "another one", *(f"another {shape}" for shape in SHAPES), *sorted(named), *sorted(grounds)]
    return phrases[:limit]


def vocabulary() -> list[str]:
    """Every word of the world, sorted."""
    return sorted({word for phrase in all_captions() for word in phrase.split()})
