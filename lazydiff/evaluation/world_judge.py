"""Whether a picture of the large world answers a question about an item: rules on pixels, at any size."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image, ImageFilter
from torch import nn

from ..world import (
    HUES,
    ITEMS,
    Light,
    PlacedItem,
    draw_item,
    draw_scene,
    item_footprint,
    random_hue,
    random_item,
    random_world,
)
from ..world.colours import srgb_to_oklab
from .classifier import NOTHING, fit_classifier, to_tensor
from .questions import stream
from .world_questions import WorldQuestion

KIND_LABELS = (*ITEMS, NOTHING)
WINDOW = 48  # px that the classifier sees of a place
AROUND = 0.12  # of a box's side, how much it sees around it
LEAST = 0.08  # sides of the picture, of the items that it is trained on
DRAWN = 224  # px per side of the pictures that it is trained on

BODY = 0.3  # how much whiter than black a body's pixels become when the item is made white
COLOURS_APART = 0.18  # in OKLab: a mean that is farther from every name is no colour
CLEAN = 20.0  # grey levels between means of the ground and of what is in its place
COARSE = 6  # of a box's side, the part that ground is averaged over before it is compared: textures differ in detail


def place_window(image: np.ndarray, placed: PlacedItem) -> np.ndarray:
    """An item's box with its surroundings, uint8 [48, 48, 3]; beyond the picture its edge is repeated."""
    size, side = len(image), placed.side
    left, top = placed.x - side * (0.5 + AROUND), placed.y - side * (1 + AROUND)
    length = max(round(side * (1 + 2 * AROUND) * size), 1)
    rows, columns = ((round(at * size) + np.arange(length)).clip(0, size - 1) for at in (top, left))
    window = Image.fromarray(image[rows[:, None], columns])
    return np.asarray(window.resize((WINDOW, WINDOW), Image.Resampling.BICUBIC))


def labelled_windows(rng: np.random.Generator, scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows uint8 [K, 48, 48, 3] and labels int64 [K]: all items of random scenes, each of another kind, and for each
    scene a place left empty and one filled with what is no item."""
    windows, labels = [], []
    for _ in range(scenes):
        scene = random_world(rng)
        if rng.random() < 0.2:
            scene = replace(scene, backdrop=replace(scene.backdrop, painted="none"))
        scene = replace(scene, items=tuple(replace(p, item=random_item(rng)) for p in scene.items if p.side >= LEAST))
        if not scene.items:
            continue
        image, i = draw_scene(scene, DRAWN), int(rng.integers(len(scene.items)))
        for placed in scene.items:
            windows.append(place_window(image, placed))
            labels.append(KIND_LABELS.index(placed.item.kind))
        empty = place_window(draw_scene(scene, DRAWN, without=i), scene.items[i])
        windows += [empty, filled_with_noise(rng, empty)]
        labels += [KIND_LABELS.index(NOTHING)] * 2
    return np.stack(windows), np.array(labels)


def filled_with_noise(rng: np.random.Generator, window: np.ndarray) -> np.ndarray:
    """A window whose middle is noise of some grain and contrast around some colour."""
    cell = int(rng.choice((1, 2, 4, 8)))
    grain = rng.uniform(-1, 1, (WINDOW // cell, WINDOW // cell, 3)).repeat(cell, 0).repeat(cell, 1)
    noise = (rng.uniform(0, 255, 3) + rng.choice((0, 32, 128)) * grain).clip(0, 255)
    margin = int(WINDOW * AROUND)
    spoilt = window.copy()
    spoilt[margin:-margin, margin:-margin] = noise[margin:-margin, margin:-margin]
    return spoilt


@cache
def train_kinds(seed: int, scenes: int, epochs: int = 8) -> nn.Module:
    """A network from windows [B, 3, 48, 48] in -1…1 to scores of KIND_LABELS, the same for the same seed; kept."""
    rng = stream(seed, 0)
    windows, labels = labelled_windows(rng, scenes)

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(48, 96, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(96 * (WINDOW // 8) ** 2, len(KIND_LABELS)),
        )  # fmt: skip

    return fit_classifier(network, windows, labels, epochs, rng)


def body_of(placed: PlacedItem, light: Light, size: int) -> np.ndarray:
    """The pixels that take an item's colour, bool [size, size]: where a white one differs from a black one."""
    body = np.zeros((size, size), bool)
    white, black = (
        draw_item(replace(placed, item=replace(placed.item, colour=(tone,) * 3, texture="plain")), light, size)
        for tone in (1.0, 0.0)
    )
    window, pixels = replace(white, pixels=white.pixels - black.pixels).window(size)
    body[window] = pixels[..., :3].mean(-1) > BODY
    return body


def mean_lab(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    return srgb_to_oklab(image[where].astype(np.float64).mean(0) / 255)


def colour_name(image: np.ndarray, question: WorldQuestion) -> str:
    """The colour at the place of an item of known kind: a key of HUES, or "" for none.

    The name whose render has the mean over the body, in OKLab, that is nearest to the picture's; none where the
    ground's own is nearer, or all are far. A mean compared with means of the same pixels needs no allowance for shading
    and pattern.
    """
    scene, target, size = question.scene, question.target, question.size
    body = body_of(question.placed, scene.light, size) & question.mask
    if not body.any():
        return ""
    found, item = mean_lab(image, body), question.placed.item
    rng = np.random.default_rng(0)
    colours = [(name, random_hue(rng, name)) for name in HUES for _ in range(2)] + [(item.name, item.colour)]
    known = [(COLOURS_APART, ""), (lab_distance(found, mean_lab(draw_scene(scene, size, without=target), body)), "")]
    for name, colour in colours:
        placed = replace(question.placed, item=replace(item, name=name, colour=colour))
        drawn = np.zeros((size, size, 3), np.float32)
        window, pixels = draw_item(placed, scene.light, size).window(size)
        drawn[window] = pixels[..., :3]
        known.append((lab_distance(found, mean_lab(drawn.clip(0, 1) * 255, body)), name))
    return min(known)[1]


def lab_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


class WorldJudge:
    """The rules of the evaluation; each takes a question and a picture uint8 [size, size, 3]."""

    def __init__(self, seed: int, scenes: int = 1500):
        """scenes: that the classifier of kinds is trained on"""
        self.classifier = train_kinds(seed, scenes)

    def kind_of(self, image: np.ndarray, placed: PlacedItem) -> str:
        """What stands at a place: one of KIND_LABELS."""
        scores = self.classifier(to_tensor(place_window(image, placed)[None]))
        return KIND_LABELS[int(scores.argmax())]

    def shape(self, question: WorldQuestion, image: np.ndarray) -> bool:
        """The kind is the expected one."""
        return self.kind_of(image, question.placed) == question.placed.item.kind

    def colour(self, question: WorldQuestion, image: np.ndarray) -> bool:
        """The colour is the expected one, on the body of the expected kind."""
        return colour_name(image, question) == question.placed.item.name

    def both(self, question: WorldQuestion, image: np.ndarray) -> bool:
        return self.shape(question, image) and self.colour(question, image)

    def former_colour(self, question: WorldQuestion, image: np.ndarray) -> bool:
        """The colour is that of siblings which are not in the picture."""
        return colour_name(image, question) == question.former

    def clean(self, question: WorldQuestion, image: np.ndarray) -> bool:
        """No item is left: the classifier sees nothing, and where item and shadow would be, the ground is the true one
        on average over parts of a sixth of the item's side."""
        where = item_footprint(question.placed, question.scene.light, question.size) & question.mask
        part = question.placed.side * question.size / COARSE
        made, true = (
            np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(part)), np.float32)
            for picture in (image, question.image)
        )
        error = float(np.linalg.norm(made[where] - true[where], axis=-1).mean())
        return error < CLEAN and self.kind_of(image, question.placed) == NOTHING

