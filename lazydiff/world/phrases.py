"""What a sample of the world is asked for in words: a closed set of phrases."""

from __future__ import annotations

from itertools import product

import numpy as np

from .backdrop import FAMILIES, MATERIALS, Backdrop
from .colours import HUES
from .items import ITEMS, PATTERNS, Item
from .scene import WorldScene

BACKGROUND = "background"
_KEPT = ((False, False), (False, False), (False, True), (True, False))  # texture, colour; the kind alone twice


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def describe_item(item: Item, texture: bool = True, colour: bool = True) -> str:
    """ "a striped blue tree"; a plain texture has no word, and either word may be left out."""
    words = [item.texture] if texture and item.texture != "plain" else []
    words += [item.name] if colour else []
    return _article(" ".join([*words, item.kind]))


def describe_backdrop(backdrop: Backdrop, part: str, tinted: bool = True) -> str:
    """ "blue sky", "sea", "blue sky over green grass"; part: "upper", "lower" or "all"; "" where it has no name."""
    surfaces = FAMILIES[backdrop.family]
    names = [f"{t} {s}" if tinted else s for s, t in zip(surfaces, backdrop.tints, strict=True)]
    chosen = {"upper": names[:1], "lower": names[-1:], "all": names}[part]
    return " over ".join(chosen)


def equal_items(scene: WorldScene, target: int) -> list[int]:
    """The siblings of an item: the others equal to it in all but place and perspective."""
    item = scene.items[target].item
    return [i for i, placed in enumerate(scene.items) if i != target and placed.item == item]


def item_captions(scene: WorldScene, target: int) -> dict[str, list[str]]:
    """The captions that may ask for this item, by form: "full", "partial", "another", "another one", "one".

    What a caption leaves out must be found in the picture: the texture's word is dropped only where equal items
    remain, the colour's also where the item stands alone, and an item unlike the others keeps all of its words.
    Equal items must outnumber those a caption could be confused with: of the same kind, of the same kind and colour
    ("another red cup"), or all ("another one"). Where the others are equal to each other, and to the item in all but
    colour, the colour is enough ("a red one").
    """
    item = scene.items[target].item
    others = [placed.item for i, placed in enumerate(scene.items) if i != target]
    same = others.count(item)
    alike = [other for other in others if other.kind == item.kind]
    forms = {"full": [describe_item(item)]}
    if 2 * same > len(alike):
        forms["partial"] = [describe_item(item, *kept) for kept in _KEPT]
        forms["another"] = [f"another {item.kind}"]
        if 2 * same > len(others):
            forms["another one"] = ["another one"]
    elif not others:
        forms["partial"] = [describe_item(item, colour=False)]
    if 2 * same > sum(other.name == item.name for other in alike):
        forms.setdefault("another", []).append(f"another {item.name} {item.kind}")
    recoloured = {other for other in others if other.name != item.name and _but_colour(other) == _but_colour(item)}
    if len(recoloured) == 1 and len(others) >= 2 and set(others) == recoloured:
        forms["one"] = [_article(f"{item.name} one")]
    return forms


def _but_colour(item: Item) -> tuple[str, str, int]:
    return item.kind, item.texture, item.seed


_WEIGHTS = {"full": 0.35, "partial": 0.28, "another": 0.17, "another one": 0.20, "one": 0.35}


def random_item_caption(rng: np.random.Generator, scene: WorldScene, target: int) -> str:
    forms = item_captions(scene, target)
    weights = np.array([_WEIGHTS[form] for form in forms])
    phrases = forms[str(rng.choice(list(forms), p=weights / weights.sum()))]
    return phrases[int(rng.integers(len(phrases)))]


def world_captions() -> list[str]:
    """Every phrase of the world, without repeats."""
    items = [Item(kind, name, (0, 0, 0), texture, 0) for kind, name, texture in product(ITEMS, HUES, PATTERNS)]
    named = {describe_item(item, colour=kept) for item in items for kept in (True, False)}
    named |= {f"another {item.name} {item.kind}" for item in items} | {f"another {kind}" for kind in ITEMS}
    named |= {_article(f"{name} one") for name in HUES}
    grounds = {
        describe_backdrop(Backdrop(family, tints, 0.5, 0), part, tinted)
        for family, surfaces in FAMILIES.items() if surfaces
        for tints in product(*(MATERIALS[surface][1] for surface in surfaces))
        for part, tinted in product(("upper", "lower", "all"), (True, False))
    }  # fmt: skip
    return [BACKGROUND, "another one", *sorted(named), *sorted(grounds)]


def world_words() -> list[str]:
    """Every word of the world, sorted."""
    return sorted({word for phrase in world_captions() for word in phrase.split()})
