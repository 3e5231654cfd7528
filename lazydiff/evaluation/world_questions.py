"""What a model of the large world is asked: held-out scenes of any size with a hole, a caption, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..world import (
    HUES,
    Item,
    PlacedItem,
    WorldScene,
    ask_for_item,
    ask_for_removal,
    describe_item,
    draw_scene,
    equal_items,
    item_captions,
    random_hue,
    random_item,
    random_world,
    random_world_sample,
)
from .questions import Question, stream

EQUAL = 2  # at least so many equal items beside the hidden one
LEAST = 0.1  # sides of the picture, of an item that is asked for
STREAMS = 100  # the first of the large world, whose seeds are shared with no other draw


@dataclass(frozen=True, eq=False)
class WorldQuestion(Question):
    """A question about one item: scene.items[target] should be there, or in a removal should be gone.

    former: the colour it had before its siblings were recoloured, "" if they were not; size: px of a side
    """

    scene: WorldScene
    target: int
    size: int
    former: str = ""

    @property
    def placed(self) -> PlacedItem:
        return self.scene.items[self.target]


def asked_of(rng: np.random.Generator, scene: WorldScene, target: int, size: int, caption: str) -> WorldQuestion:
    sample = ask_for_item(rng, scene, target, size, caption)
    return WorldQuestion(sample.image, sample.mask, caption, scene, target, size)


def families(rng: np.random.Generator, size: int) -> Iterator[tuple[WorldScene, int, dict[str, list[str]]]]:
    """Scenes with an item that is large enough and has siblings, and the captions that may ask for it."""
    while True:
        scene = random_world(rng, EQUAL + 1, size)
        chosen = [
            i for i, placed in enumerate(scene.items) if placed.side >= LEAST and len(equal_items(scene, i)) >= EQUAL
        ]
        if chosen:
            target = int(rng.choice(chosen))
            yield scene, target, item_captions(scene, target)


def sibling_questions(rng: np.random.Generator, size: int, number: int) -> tuple[WorldQuestion, WorldQuestion]:
    """One of equal items is hidden, and the caption keeps its colour to itself, every other time its kind too; and the
    same place with "another one" among siblings of another colour: only the context has changed."""
    scene, target, captions = next(found for found in families(rng, size) if "another one" in found[2])
    hidden = scene.items[target].item
    named = f"another {hidden.kind}" if number % 4 == 1 else describe_item(hidden, texture=False, colour=False)
    caption = "another one" if number % 2 == 0 else named

    name = str(rng.choice(sorted(HUES.keys() - {placed.item.name for placed in scene.items})))
    swapped = recoloured(scene, hidden, replace(hidden, name=name, colour=random_hue(rng, name)))
    first = asked_of(rng, scene, target, size, caption)
    changes = {"scene": swapped, "image": draw_scene(swapped, size), "caption": "another one", "former": hidden.name}
    return first, replace(first, **changes)  # type: ignore[arg-type]


def recoloured(scene: WorldScene, item: Item, other: Item) -> WorldScene:
    """The scene with another item in place of all that are equal to one."""
    items = (replace(placed, item=other) if placed.item == item else placed for placed in scene.items)
    return replace(scene, items=tuple(items))


def blank_question(rng: np.random.Generator, size: int) -> WorldQuestion:
    """Kind and colour in words on a canvas that is grey everywhere."""
    scene, target, _ = next(families(rng, size))
    placed = replace(scene.items[target], item=replace(random_item(rng), texture="plain"))
    scene = replace(scene, backdrop=replace(scene.backdrop, painted="none"), items=(placed,))
    return asked_of(rng, scene, 0, size, describe_item(placed.item))


def against_siblings_question(rng: np.random.Generator, size: int) -> WorldQuestion:
    """The place of one of equal items, but in words another kind and another colour."""
    scene, target, _ = next(families(rng, size))
    hidden = scene.items[target]
    item = hidden.item
    while item.kind == hidden.item.kind or item.name == hidden.item.name:
        item = replace(random_item(rng), texture="plain")
    items = (*scene.items[:target], replace(hidden, item=item), *scene.items[target + 1 :])
    return asked_of(rng, replace(scene, items=items), target, size, describe_item(item))


def several_kinds_question(rng: np.random.Generator, size: int) -> WorldQuestion:
    """Siblings of two kinds and colours at least: the kind is named, and its own siblings have the colour."""
    for scene, target, captions in families(rng, size):
        hidden = scene.items[target].item
        others = [placed.item for placed in scene.items if placed.item.kind != hidden.kind]
        if f"another {hidden.kind}" in captions.get("another", ()) and any(others.count(item) > 1 for item in others):
            return asked_of(rng, scene, target, size, f"another {hidden.kind}")
    raise AssertionError("scenes never end")


def removal_question(rng: np.random.Generator, size: int) -> WorldQuestion:
    """The ground where an item of the layout stood."""
    while True:
        scene = random_world(rng, size=size)
        target = int(rng.integers(len(scene.items)))
        if scene.items[target].side >= LEAST:
            sample = ask_for_removal(rng, scene, target, size)
            return WorldQuestion(sample.image, sample.mask, sample.caption, scene, target, size)


def ordinary_question(rng: np.random.Generator, size: int) -> Question:
    """A sample as in training, of an item or of empty ground."""
    sample = random_world_sample(rng, size, str(rng.choice(("object", "background", "scenery"), p=(0.6, 0.2, 0.2))))
    return Question(sample.image, sample.mask, sample.caption)


MAKERS: dict[str, Callable[[np.random.Generator, int], WorldQuestion]] = {
    "caption_blank": blank_question, "caption_against_siblings": against_siblings_question,
    "several_kinds": several_kinds_question, "removal": removal_question,
}  # fmt: skip


def world_questions(seed: int, scenes: int, size: int) -> dict[str, list[WorldQuestion]]:
    """`scenes` questions of each kind that is judged by rules; a longer list begins with the shorter one."""
    pairs, *others = (stream(seed, STREAMS + number) for number in range(1 + len(MAKERS)))
    first, swapped = zip(*(sibling_questions(pairs, size, i) for i in range(scenes)), strict=True)
    streams = zip(MAKERS.items(), others, strict=True)
    made = {kind: [make(rng, size) for _ in range(scenes)] for (kind, make), rng in streams}
    return {"sibling": list(first), "swapped": list(swapped), **made}


def ordinary_world_questions(seed: int, scenes: int, size: int) -> list[Question]:
    rng = stream(seed, STREAMS + 1 + len(MAKERS))
    return [ordinary_question(rng, size) for _ in range(scenes)]
