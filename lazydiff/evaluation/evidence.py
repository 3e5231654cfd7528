"""What the paper claims of its model, as a sceptic would measure it: each model at its best, differences with bounds.

The models answer the same questions with the same seeds, so that differences are of pairs: questions as in training,
and harder ones. Sampler and guidance of each model are chosen on scenes of one seed, for either kind of questions and
every number of steps apart, and all models are compared on scenes of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..model.config import Sampling
from ..model.lazydiffusion import LazyDiffusion, fingerprint
from ..scenes import CANVAS
from .baselines import JUDGED, check_models, made_of
from .evaluate import PERCENTAGES, blended, how_many, obeyed
from .evidence_report import EvidenceRow, write_evidence
from .hard_questions import hard_questions
from .intervals import Interval, paired_difference
from .judge import Judge
from .questions import ObjectQuestion, distant_siblings, object_questions
from .report import write

DEVELOPMENT, TEST = 11, 21  # seeds of the scenes that settings are chosen on, and of those that are reported
QUICK = 6  # scenes
PLAIN, HARD = "as in training", "harder"
SIBLING_COLOUR = ("sibling_colour",)
IN_SIGHT = ("caption_blank", "caption_against_siblings", "removal")  # a crop around the hole shows what they ask for

Questions = Mapping[str, Sequence[ObjectQuestion]]  # by kind
Obeyed = dict[str, np.ndarray]  # for each figure, whether each of its questions was obeyed: bool [S]


class Trial(NamedTuple):
    """How a model is called, and the ways of sampling that are tried with it; the first of `steps` is the usual one."""

    name: str
    steps: tuple[int, ...] = (20, 4, 2)
    samplers: tuple[str, ...] = ("ancestral", "euler")
    guidances: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.5)

    def ways(self, sampling: Sampling, steps: int) -> Iterator[Sampling]:
        """sampling: what is not tried is as there"""
        for sampler, guidance in product(self.samplers, self.guidances):
            yield replace(sampling, sampler=sampler, guidance=guidance, steps=steps)


TRIALS = {
    "lazy": Trial("LazyDiffusion"),
    "image": Trial("RegenerateImage"),
    "crop": Trial("RegenerateCrop"),
    "longer": Trial("RegenerateImage, trained longer"),
    "iddpm": Trial("LazyDiffusion by IDDPM", (20, 50), ("iddpm",)),
}


class Best(NamedTuple):
    """What a model has answered on the reported scenes, sampled in the way that was best on the others."""

    sampling: Sampling
    obeyed: Obeyed


Answered = Mapping[tuple[str, str, int], Best]  # by a key of TRIALS, the kind of questions and the number of steps


class Answers:
    """Answers that are kept in a file as soon as they are known, so that a run that was stopped goes on."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """settings: what all answers depend on; those of others are not used"""
        self.path, self.settings = path, dict(settings)
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.known: dict[str, dict[str, list[bool]]] = kept["answers"] if kept.get("settings") == self.settings else {}

    def get(self, name: str) -> Obeyed | None:
        found = self.known.get(name)
        return None if found is None else {figure: np.array(values) for figure, values in found.items()}

    def keep(self, name: str, obeyed: Obeyed) -> None:
        self.known[name] = {figure: values.tolist() for figure, values in obeyed.items()}
        write(self.path, json.dumps({"settings": self.settings, "answers": self.known}).encode())


def evaluate_evidence(
    models: Mapping[str, LazyDiffusion], output: Path, scenes: int = 200, quick: bool = False, progress: bool = True
) -> dict[str, float]:
    """Compare LazyDiffusion with the paper's baselines, each with the settings that suit it best; returns the figures.

    models: “lazy”, “image” (RegenerateImage) and “crop” (RegenerateCrop); “longer”, a RegenerateImage that was trained
        longer, and “iddpm”, a LazyDiffusion that was trained by the paper's objective, may be missing
    scenes: questions of each kind that are reported; settings are chosen on a quarter as many others
    quick: at most QUICK scenes, and a less trained judge
    Writes evidence.json and evidence.md into `output` at the end; what is known by then is kept in answers.json, from
    which the same command goes on, and one with a further model too.
    Errors: ValueError for fewer than two scenes, or a model that is not what it is taken for.
    """
    check_models(models)
    if "longer" in models:
        check_models({**models, "image": models["longer"]})
    if "iddpm" in models:
        check_iddpm(models["iddpm"])
    scenes = how_many(scenes, QUICK if quick else scenes, least=2)
    output.mkdir(parents=True, exist_ok=True)
    answers = Answers(output / "answers.json", {"scenes": scenes, "quick": quick})
    judge = Judge(DEVELOPMENT, scenes=400 if quick else 1000)
    on = {"development": asked(DEVELOPMENT, -(-scenes // 4)), "test": asked(TEST, scenes)}
    weights = {name: fingerprint(model.config, model.state_dict()) for name, model in models.items()}

    def answered(name: str, sampling: Sampling, kind: str, part: str) -> Obeyed:
        way = f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"
        bar.set_postfix_str(f"{name}, {way}")
        title = f"{name} {weights[name]}, {way}, {kind}, {part}"
        known = answers.get(title)
        if known is None:
            known = obey(models[name], sampling, on[part][kind], judge)
            answers.keep(title, known)
        bar.update()
        return known

    tests = [(name, kind, steps) for name in models for kind in (PLAIN, HARD) for steps in TRIALS[name].steps]
    ways = {test: [*TRIALS[test[0]].ways(models[test[0]].config.sampling, test[2])] for test in tests}
    best: dict[tuple[str, str, int], Best] = {}
    with tqdm(total=sum(len(each) + 1 for each in ways.values()), unit="setting", disable=not progress) as bar:
        for name, kind, steps in tests:
            tried = {way: answered(name, way, kind, "development") for way in ways[name, kind, steps]}
            chosen = max(tried, key=lambda way: mean(tried[way]))
            best[name, kind, steps] = Best(chosen, answered(name, chosen, kind, "test"))

    differences = all_differences(best)
    rows = [
        EvidenceRow(TRIALS[name].name, kind, steps, one.sampling.sampler, one.sampling.guidance, percent(one.obeyed))
        for (name, kind, steps), one in best.items()
    ]
    rows += [EvidenceRow("the true pictures", kind, 0, "", 0, percent(ceiling(on["test"][kind], judge)))
             for kind in (PLAIN, HARD)]  # fmt: skip
    told = {
        "scenes": scenes, "development_seed": DEVELOPMENT, "test_seed": TEST, "quick": quick,
        "precision": {name: str(model.precision).removeprefix("torch.") for name, model in models.items()},
    }  # fmt: skip
    write_evidence(output, differences, rows, told)
    return {figure: value for name, one in differences.items() for figure, value in one.figures(name).items()}


def check_iddpm(model: LazyDiffusion) -> None:
    """Errors: ValueError for a model that was not trained by IDDPM, or is no LazyDiffusion of the scenes."""
    config = model.config
    if config.prediction != "iddpm" or config.network.dense or config.network.canvas != CANVAS:
        raise ValueError(f"{config.name} cannot be measured as a LazyDiffusion of {CANVAS} px trained by IDDPM")


def asked(seed: int, scenes: int) -> dict[str, Questions]:
    """Questions about objects; where siblings are to be followed, they lie outside the square that a crop sees."""
    questions = {**object_questions(seed, scenes), "sibling": distant_siblings(seed, scenes)}
    plain = {kind: questions[kind] for kind in dict.fromkeys(PERCENTAGES[figure][0] for figure in JUDGED)}
    return {PLAIN: plain, HARD: hard_questions(seed, scenes)}


def obey(model: LazyDiffusion, sampling: Sampling, questions: Questions, judge: Judge) -> Obeyed:
    """Which questions a model answers as each figure's rule asks."""
    pictures = {kind: blended(some, made_of(model, some, sampling)) for kind, some in questions.items()}
    return judged(questions, pictures, judge)


def ceiling(questions: Questions, judge: Judge) -> Obeyed:
    """Which of the true pictures are as each figure's rule asks."""
    return judged(questions, {kind: [one.image for one in some] for kind, some in questions.items()}, judge)


def judged(questions: Questions, pictures: Mapping[str, Iterable[np.ndarray]], judge: Judge) -> Obeyed:
    rules = {figure: PERCENTAGES[figure] for figure in JUDGED if PERCENTAGES[figure][0] in questions}
    return obeyed(judge, rules, questions, pictures)


def mean(answers: Obeyed) -> float:
    return float(np.mean([each.mean() for each in answers.values()]))


def percent(answers: Obeyed) -> dict[str, float]:
    return {figure: round(100 * float(each.mean()), 2) for figure, each in answers.items()}


def all_differences(best: Answered) -> dict[str, Interval]:
    """Every difference that is reported, by its name."""
    found: dict[str, Interval] = {}
    usual, *few = TRIALS["lazy"].steps
    endings = {usual: "", **{steps: f"_{steps}_steps" for steps in few}}
    for kind, hard in {PLAIN: "", HARD: "_hard"}.items():
        for steps, ending in endings.items():
            lazy, crop, image = (best[name, kind, steps].obeyed for name in ("lazy", "crop", "image"))
            found[f"lazy_minus_crop_sibling_colour{hard}{ending}"] = difference(lazy, crop, SIBLING_COLOUR)
            found[f"lazy_minus_crop{hard}{ending}"] = difference(lazy, crop)
            found[f"lazy_minus_crop_in_sight{hard}{ending}"] = difference(lazy, crop, IN_SIGHT)
            found[f"lazy_minus_dense{hard}{ending}"] = difference(lazy, image)
            if longer := best.get(("longer", kind, steps)):
                found[f"longer_minus_dense{hard}{ending}"] = difference(longer.obeyed, image)
                found[f"lazy_minus_longer{hard}{ending}"] = difference(lazy, longer.obeyed)
        for steps in TRIALS["iddpm"].steps:
            if one := best.get(("iddpm", kind, steps)):
                name = f"iddpm_{steps}_steps_minus_lazy{hard}"
                found[name] = difference(one.obeyed, best["lazy", kind, usual].obeyed)
    return found


def difference(first: Obeyed, second: Obeyed, figures: Sequence[str] = JUDGED) -> Interval:
    """figures: whose mean is compared, where they were asked for"""
    kinds: dict[str, list[str]] = {}
    for figure in figures:
        if figure in first:
            kinds.setdefault(PERCENTAGES[figure][0], []).append(figure)

    def by_kind(side: Obeyed) -> list[np.ndarray]:
        return [np.stack([side[figure] for figure in each]) for each in kinds.values()]

    return paired_difference(by_kind(first), by_kind(second))
