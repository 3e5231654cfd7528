"""Whether a picture answers a question about an object: rules on pixels, so that nobody has to look."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

from ..scenes import BOX, COLOURS, SIZES, TEXTURES, Placed, blank_canvas, footprint
from ..scenes.sprites import sprite
from .classifier import LABELS, NOTHING, to_tensor, train_classifier, window
from .questions import ObjectQuestion

NO_COLOUR = "no colour"

# RGB distances in grey levels of 255.
REACH = 58.0  # as far as the two most similar colours of objects are apart
CLEAN = 20.0  # under half of what the least visible objects change where they stand (1 in 100 below 45)


@cache
def references(shape: str, size: str, light: str) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """The body of a shape, bool [24, 24], and colours with their mean RGB there: one for each texture, and the empty
    canvas's grey. The body is what takes the object's colour: where a white one differs from a red one."""
    white, red = (sprite(shape, colour, "plain", size, light).colour for colour in ("white", "red"))
    body = np.abs(white - red).max(-1) > 90
    kinds = product(COLOURS, TEXTURES)
    means = [(colour, sprite(shape, colour, texture, size, light).colour[body].mean(0)) for colour, texture in kinds]
    return body, [*means, (NO_COLOUR, blank_canvas()[0, 0].astype(np.float32))]


def colour_of(image: np.ndarray, placed: Placed, light: str) -> str:
    """The colour at the place of an object of known shape: a key of COLOURS, or NO_COLOUR.

    The colour whose mean over the shape's body is nearest to the picture's mean over that body, for the large and the
    small body (a blank canvas does not always tell the size); none if all are further than REACH. A mean compared with
    means of the same pixels needs no allowance for shading, stripes or dots.
    """
    box = image[placed.y : placed.y + BOX, placed.x : placed.x + BOX]
    found = [(REACH, NO_COLOUR)]
    for size in SIZES:
        body, means = references(placed.thing.shape, size, light)
        mean = box[body].mean(0)
        found += [(float(np.linalg.norm(mean - expected)), colour) for colour, expected in means]
    return min(found)[1]


class Judge:
    """The rules of the evaluation; each takes a question and a picture uint8 [96, 96, 3]."""

    def __init__(self, seed: int, scenes: int = 1000):
        """scenes: that the classifier of shapes is trained on, a few seconds' worth"""
        self.classifier = train_classifier(seed, scenes)

    def shape_of(self, image: np.ndarray, placed: Placed) -> str:
        """What stands at a place: a key of SHAPES, or NOTHING."""
        scores = self.classifier(to_tensor(window(image, placed)[None]))
        return LABELS[int(scores.argmax())]

    def shape(self, question: ObjectQuestion, image: np.ndarray) -> bool:
        """The shape is the expected one."""
        return self.shape_of(image, question.placed) == question.placed.thing.shape

    def colour(self, question: ObjectQuestion, image: np.ndarray) -> bool:
        """The colour is the expected one, on the body of the expected shape."""
        return colour_of(image, question.placed, question.light) == question.placed.thing.colour

    def both(self, question: ObjectQuestion, image: np.ndarray) -> bool:
        return self.shape(question, image) and self.colour(question, image)

    def former_colour(self, question: ObjectQuestion, image: np.ndarray) -> bool:
        """The colour is that of siblings which are not in the picture."""
        return colour_of(image, question.placed, question.light) == question.former

    def clean(self, question: ObjectQuestion, image: np.ndarray) -> bool:
        """No object is left: the classifier sees nothing, and where the object and its shadow would be, the mean RGB
        distance to the true ground is below CLEAN."""
        place = footprint(question.placed, question.light)
        error = image[place].astype(np.float32) - question.image[place]
        clean = float(np.linalg.norm(error, axis=-1).mean()) < CLEAN
        return clean and self.shape_of(image, question.placed) == NOTHING
