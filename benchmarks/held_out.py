"""Combinations left out of the training: asked of LazyDiffusion and RegenerateImage that were trained without them.

    python -m benchmarks.held_out --output DIR [--steps 3250] [--scenes 200] [--train NAME] [--trainings DIR]
        [--device cpu] [--quick]

Of each shape of the built-in scenes one colour is left out. Both models are trained on scenes in which no such thing is
seen, with the settings of those that were measured elsewhere, but for half as many steps and with channels weighed by
their variance throughout. The same command goes on with a training that was stopped; trainings of another folder are
used with --trainings. Then both are asked for the things left out, as one of their siblings and in words, and, in the
same places, for the same things in a colour that the training had. Sampler and guidance are those that suited the
longer trainings best. Writes `held-out.json` and `held-out.png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image

from lazydiff.core.pictures import from_array, grid
from lazydiff.data.stream import SceneExamples
from lazydiff.evaluation.baselines import made_of
from lazydiff.evaluation.evaluate import blended
from lazydiff.evaluation.evidence import (
    DEVELOPMENT,
    SIBLING_COLOUR,
    TEST,
    Obeyed,
    Questions,
    ceiling,
    difference,
    judged,
    percent,
)
from lazydiff.evaluation.judge import Judge
from lazydiff.evaluation.laboratory import SMALL, WEIGHTS
from lazydiff.evaluation.questions import (
    ObjectQuestion,
    about,
    against_siblings,
    ask_for_another,
    blank,
    family,
    stream,
    with_other_things,
)
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.config import Sampling
from lazydiff.scenes import COLOURS, SHAPES, Sample, Thing, describe, random_sample
from lazydiff.training.config import TrainingConfig
from lazydiff.training.start import Material
from lazydiff.training.train import train

from .harness import Harness, arguments

LEFT_OUT = {(shape, list(COLOURS)[i % len(COLOURS)]) for i, shape in enumerate(SHAPES)}
CONFIGS = {"lazy": SMALL.with_suffix(".toml"), "dense": WEIGHTS / "regenerate-image.toml"}
SAMPLINGS = {"lazy": Sampling("ancestral", 20, 2.0, 0.8), "dense": Sampling("ancestral", 20, 3.0, 0.8)}
HELD, KNOWN, TRUE = "held out", "known", "true pictures"
STREAMS = 11  # the first of the streams of questions; the evaluation's own have smaller numbers
SHOWN = 12


def is_held_out(thing: Thing) -> bool:
    return (thing.shape, thing.colour) in LEFT_OUT


class PartOfScenes(SceneExamples):
    """The built-in world without the things that are held out."""

    name = "scenes with combinations held out"

    def sample(self, rng: np.random.Generator) -> Sample:
        while True:
            sample = random_sample(rng)
            if not any(is_held_out(placed.thing) for placed in sample.scene.things):
                return sample


def held_out_questions(seed: int, scenes: int) -> dict[str, list[ObjectQuestion]]:
    """`scenes` questions of each kind about things that are held out, among things that are not; a longer list begins
    with the shorter one."""

    def followed(rng: np.random.Generator) -> ObjectQuestion:
        return ask_for_another(rng, *family(rng), int(rng.integers(4)))

    def fitting(question: ObjectQuestion) -> bool:
        assert question.scene is not None
        others = {placed.thing for placed in question.scene.things} - {question.placed.thing}
        return is_held_out(question.placed.thing) and not any(map(is_held_out, others))

    makers = {"sibling": followed, "caption_blank": blank, "caption_against_siblings": against_siblings}
    found = {}
    for number, (kind, make) in enumerate(makers.items(), STREAMS):
        rng = stream(seed, number)
        found[kind] = list(islice(filter(fitting, (make(rng) for _ in count())), scenes))
    return found


def in_known_colours(questions: Questions, seed: int) -> dict[str, list[ObjectQuestion]]:
    """The same questions, their things and the siblings in another colour, neither held out nor seen in the scene."""

    def in_a_known_colour(rng: np.random.Generator, question: ObjectQuestion) -> ObjectQuestion:
        scene, thing = question.scene, question.placed.thing
        assert scene is not None
        taken = {placed.thing.colour for placed in scene.things}
        others = [replace(thing, colour=name) for name in COLOURS if name not in taken]
        known = [other for other in others if not is_held_out(other)]
        other = known[int(rng.integers(len(known)))]
        caption = describe(other) if thing.colour in question.caption else question.caption
        return about(with_other_things(scene, thing, other), question.target, question.mask, caption)

    found = {}
    for number, (kind, some) in enumerate(questions.items()):
        rng = np.random.default_rng(seed + number)
        found[kind] = [in_a_known_colour(rng, one) for one in some]
    return found


def trained(name: str, folder: Path, steps: int) -> Path:
    config = TrainingConfig.read(CONFIGS[name], steps=steps, weigh_variance_from=0)
    return train(config, folder / name, Material(PartOfScenes(config.seed)))


def weights_in(folder: Path) -> list[Path]:
    return [folder / name / "model.safetensors" for name in CONFIGS]


def figures(obeyed: Mapping[tuple[str, str], Obeyed]) -> dict[str, float]:
    """obeyed: by model and kind of things"""
    compared = {f"held_out_minus_known_{name}": (obeyed[name, HELD], obeyed[name, KNOWN]) for name in CONFIGS} | {
        f"{which.replace(' ', '_')}_lazy_minus_dense": (obeyed["lazy", which], obeyed["dense", which])
        for which in (HELD, KNOWN)
    }
    found = {name: difference(*both) for name, both in compared.items()}
    found |= {f"{name}_sibling_colour": difference(*both, SIBLING_COLOUR) for name, both in compared.items()}
    return {figure: value for name, one in found.items() for figure, value in one.figures(name).items()}


def by_combination(
    questions: Sequence[ObjectQuestion], obeyed: Mapping[tuple[str, str], Obeyed]
) -> list[dict[str, str | float]]:
    """Of each thing held out, in how many percent of the questions about siblings its colour is followed."""
    things = np.array([f"{one.placed.thing.colour} {one.placed.thing.shape}" for one in questions])
    colours = {name: obeyed[name, HELD]["sibling_colour"] for name in CONFIGS}
    return [
        {"thing": thing, "questions": int((things == thing).sum())}
        | {name: round(100 * float(followed[things == thing].mean()), 1) for name, followed in colours.items()}
        for thing in sorted(set(things))
    ]


def picture(questions: Sequence[ObjectQuestion], answers: Mapping[str, np.ndarray]) -> Image.Image:
    """The first questions, and under each what the models make of it."""
    rows = [[(one.canvas, one.caption) for one in questions[:SHOWN]]]
    rows += [[(made, name) for made in some[:SHOWN]] for name, some in answers.items()]
    return grid([(from_array(image)[0], text) for row in rows for image, text in row], len(rows[0]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "2 steps, 4 scenes")
    parser.add_argument("--steps", type=int, default=3250, help="of each training (%(default)s)")
    parser.add_argument("--scenes", type=int, default=200, help="questions of each kind (%(default)s)")
    parser.add_argument("--train", choices=CONFIGS, help="train one of the models and measure nothing")
    parser.add_argument("--trainings", type=Path, help="the --output of a command that has trained them")
    args = parser.parse_args(argv)
    if args.trainings and args.train:
        parser.error("--train makes a training, and --trainings takes two that are done: give one of them")
    if args.trainings and not all((args.trainings / name / f"state-{args.steps}").exists() for name in CONFIGS):
        parser.error(f"{args.trainings} has no trainings of {args.steps} steps: {' and '.join(CONFIGS)}")
    harness = Harness.of(args)
    folder, scenes = args.trainings or harness.output, 4 if args.quick else args.scenes
    steps = 2 if args.quick and not args.trainings else args.steps
    if args.train:
        trained(args.train, folder, steps)
        return
    models = {name: load_checkpoint(trained(name, folder, steps)).to(harness.device) for name in CONFIGS}
    judge, held = Judge(DEVELOPMENT, scenes=400 if args.quick else 1000), held_out_questions(TEST, scenes)
    asked: dict[str, Questions] = {HELD: held, KNOWN: in_known_colours(held, TEST)}
    answers = {
        (name, which): {kind: blended(some, made_of(model, some, SAMPLINGS[name])) for kind, some in questions.items()}
        for name, model in models.items() for which, questions in asked.items()
    }  # fmt: skip
    obeyed = {(name, which): judged(asked[which], made, judge) for (name, which), made in answers.items()}
    ceilings = {(TRUE, which): ceiling(questions, judge) for which, questions in asked.items()}
    rows = [{"model": name, "things": which, "figures": percent(one)}
            for (name, which), one in {**obeyed, **ceilings}.items()]  # fmt: skip
    print(*rows, sep="\n")
    harness.write(
        "held-out", figures(obeyed), scenes=scenes, steps=steps, seed=TEST, table=rows,
        sampling={name: asdict(one) for name, one in SAMPLINGS.items()},
        sibling_colour=by_combination(held["sibling"], obeyed),
    )  # fmt: skip
    shown = {"LazyDiffusion": answers["lazy", HELD]["sibling"], "RegenerateImage": answers["dense", HELD]["sibling"]}
    picture(held["sibling"], shown).save(harness.output / "held-out.png")


if __name__ == "__main__":
    main()
