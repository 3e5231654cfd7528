"""Combinations that no training has shown: asked of LazyDiffusion and RegenerateImage that were trained without them.

    python -m benchmarks.held_out --output DIR [--steps 3250] [--scenes 200] [--train NAME] [--models DIR]
        [--device cpu] [--quick]

Of each shape of the built-in scenes one colour is held out. Both models are trained with the settings of those that
were measured elsewhere, but for the number of steps, on scenes in which no such thing is seen; the same command goes on
where a stopped training was, and with --models DIR those are measured that were trained there. Then they are asked for
the things held out, by their names and as one of their siblings, and for the same things in a colour that the training
had. Guidance is what suited the models best there. Writes `held-out.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np

from lazydiff.data.batch import Example
from lazydiff.data.stream import SEEDS, SceneExamples
from lazydiff.evaluation.evidence import DEVELOPMENT, TEST, Obeyed, difference, obey, percent
from lazydiff.evaluation.judge import Judge
from lazydiff.evaluation.questions import (
    ObjectQuestion,
    about,
    against_siblings,
    ask_for_another,
    blank,
    family,
    stream,
)
from lazydiff.evaluation.regenerate import WEIGHTS
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.config import SHIPPED, Sampling
from lazydiff.scenes import COLOURS, SHAPES, Sample, Thing, random_sample
from lazydiff.training.config import TrainingConfig
from lazydiff.training.start import Material
from lazydiff.training.train import train

from .harness import Harness, arguments

HELD_OUT = {(shape, list(COLOURS)[i % len(COLOURS)]) for i, shape in enumerate(SHAPES)}
CONFIGS = {"lazy": SHIPPED.with_suffix(".toml"), "image": WEIGHTS / "regenerate-image.toml"}
STEPS = 20
GUIDANCE = {"lazy": 2.0, "image": 3.0}
UNSEEN, SEEN = "held out", "trained on"
STREAMS = 11  # the first of the streams of questions; others are taken


def held_out(thing: Thing) -> bool:
    return (thing.shape, thing.colour) in HELD_OUT


class PartOfScenes(SceneExamples):
    """The built-in world without the things that are held out."""

    name = "scenes with combinations held out"

    def read(self, reader: int, readers: int, start: int) -> Iterator[Example]:
        for number in count(start):
            rng = np.random.default_rng([self.seed, reader, number])
            sample = sample_without(rng)
            yield Example(int(rng.integers(SEEDS)), sample.mask, sample.caption, sample.image)

    def pictures(self, number: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, number])
        return np.stack([sample_without(rng).image for _ in range(number)])


def sample_without(rng: np.random.Generator) -> Sample:
    """A sample of training in which nothing is seen that is held out."""
    while True:
        sample = random_sample(rng)
        if not any(held_out(placed.thing) for placed in sample.scene.things):
            return sample


def unseen_questions(seed: int, scenes: int) -> dict[str, list[ObjectQuestion]]:
    """`scenes` questions of each kind about things that are held out; a longer list begins with the shorter one."""

    def followed(rng: np.random.Generator) -> ObjectQuestion:
        return ask_for_another(rng, *family(rng), int(rng.integers(4)))

    makers = {"sibling": followed, "caption_blank": blank, "caption_against_siblings": against_siblings}
    found = {}
    for number, (kind, make) in enumerate(makers.items(), STREAMS):
        rng = stream(seed, number)
        drawn = (make(rng) for _ in count())
        found[kind] = list(islice((one for one in drawn if held_out(one.placed.thing)), scenes))
    return found


def in_a_known_colour(question: ObjectQuestion) -> ObjectQuestion:
    """The same question, its thing and the siblings in the next colour that is not held out, nor seen in the scene."""
    scene, thing, colours = question.scene, question.placed.thing, list(COLOURS)
    assert scene is not None
    taken = {placed.thing.colour for placed in scene.things}
    after = colours[colours.index(thing.colour) :] + colours
    other = next(known for name in after
                 if name not in taken and not held_out(known := replace(thing, colour=name)))  # fmt: skip
    things = tuple(replace(placed, thing=other) if placed.thing == thing else placed for placed in scene.things)
    caption = question.caption.replace(thing.colour, other.colour)
    return about(replace(scene, things=things), question.target, question.mask, caption)


def trained(name: str, folder: Path, steps: int) -> Path:
    config = TrainingConfig.read(CONFIGS[name], steps=steps, weigh_variance_from=0)
    return train(config, folder / name, Material(PartOfScenes(config.seed)))


def weights_in(folder: Path) -> list[Path]:
    return [folder / name / "model.safetensors" for name in CONFIGS]


def figures(obeyed: Mapping[tuple[str, str], Obeyed]) -> dict[str, float]:
    """obeyed: by model and kind of things"""
    found = {f"unseen_minus_seen_{name}": difference(obeyed[name, UNSEEN], obeyed[name, SEEN]) for name in CONFIGS}
    found["unseen_lazy_minus_dense"] = difference(obeyed["lazy", UNSEEN], obeyed["image", UNSEEN])
    return {figure: value for name, one in found.items() for figure, value in one.figures(name).items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "models that have hardly been trained, 4 scenes")
    parser.add_argument("--steps", type=int, default=3250, help="of each training (%(default)s)")
    parser.add_argument("--scenes", type=int, default=200, help="questions of each kind (%(default)s)")
    parser.add_argument("--models", type=Path, help="the --output of a command that has trained them")
    parser.add_argument("--train", choices=CONFIGS, help="train one of the models and measure nothing")
    args = parser.parse_args(argv)
    harness = Harness.of(args)
    steps, scenes = (2, 4) if args.quick else (args.steps, args.scenes)
    if args.train:
        trained(args.train, harness.output, steps)
        return
    paths = weights_in(args.models) if args.models else [trained(name, harness.output, steps) for name in CONFIGS]
    models = {name: load_checkpoint(path).to(harness.device) for name, path in zip(CONFIGS, paths, strict=True)}
    judge = Judge(DEVELOPMENT, scenes=400 if args.quick else 1000)
    unseen = unseen_questions(TEST, scenes)
    asked = {UNSEEN: unseen, SEEN: {kind: [*map(in_a_known_colour, some)] for kind, some in unseen.items()}}
    obeyed = {
        (name, which): obey(model, Sampling("ancestral", STEPS, GUIDANCE[name], 0.8), questions, judge)
        for name, model in models.items() for which, questions in asked.items()
    }  # fmt: skip
    rows = [{"model": name, "things": which, "figures": percent(one)} for (name, which), one in obeyed.items()]
    print(*rows, sep="\n")
    harness.write("held-out", figures(obeyed), scenes=scenes, steps=steps, seed=TEST, table=rows,
                  held_out=sorted(f"{colour} {shape}" for shape, colour in HELD_OUT))  # fmt: skip


if __name__ == "__main__":
    main()
