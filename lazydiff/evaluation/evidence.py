"""What the paper claims of its model, as a sceptic would measure it: each model at its best, differences with bounds.

Guidance and sampler of each model are chosen on scenes of one seed, and all are compared on scenes of another. The
models answer the same questions with the same seeds, so that differences are of pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..model.config import Sampling
from ..model.lazydiffusion import LazyDiffusion
from .baselines import JUDGED, check_models, made_of
from .evaluate import PERCENTAGES, blended, how_many
from .intervals import Interval, paired_difference
from .judge import Judge
from .questions import ObjectQuestion, distant_siblings, object_questions
from .report import write

DEVELOPMENT, TEST = 11, 21  # seeds of the scenes that settings are chosen on, and of those that are reported
GUIDANCES, SAMPLERS = (1.0, 1.5, 2.0, 3.0), ("ancestral", "euler")
QUICK = 6  # scenes
NAMES = {"lazy": "LazyDiffusion", "image": "RegenerateImage", "crop": "RegenerateCrop"}

Obeyed = dict[str, np.ndarray]  # for each figure, whether each of its questions was obeyed: bool [S]


class Answers:
    """Answers that are kept in a file as soon as they are known, so that a run that was stopped goes on."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """settings: what the answers depend on; those of others are not used"""
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
    models: Mapping[str, LazyDiffusion], output: Path, scenes: int = 400, quick: bool = False, progress: bool = True
) -> dict[str, float]:
    """Compare LazyDiffusion with the paper's baselines, each with the settings that suit it best; returns the figures.

    models: “lazy”, “image” (RegenerateImage) and “crop” (RegenerateCrop)
    scenes: questions of each kind that are reported; settings are chosen on a quarter as many others
    quick: at most QUICK scenes, and a less trained judge
    Writes evidence.json and evidence.md into `output` at the end; what is known by then is kept in answers.json, from
    which the same command goes on.
    Errors: ValueError for fewer than two scenes, or a model that is not what it is taken for.
    """
    check_models(models)
    scenes = how_many(scenes, QUICK if quick else scenes, least=2)
    output.mkdir(parents=True, exist_ok=True)
    fingerprints = {name: model.fingerprint for name, model in models.items()}
    answers = Answers(output / "answers.json", {"models": fingerprints, "scenes": scenes, "quick": quick})
    judge = Judge(DEVELOPMENT, scenes=400 if quick else 1000)
    chosen_on, reported = asked(DEVELOPMENT, -(-scenes // 4)), asked(TEST, scenes)

    def answered(name: str, sampling: Sampling, questions: Mapping[str, Sequence[ObjectQuestion]], on: str) -> Obeyed:
        title = f"{name}, {sampling.sampler}, guidance {sampling.guidance:g}, {on}"
        bar.set_postfix_str(title)
        known = answers.get(title)
        if known is None:
            known = obey(models[name], sampling, questions, judge)
            answers.keep(title, known)
        bar.update()
        return known

    best: dict[str, Sampling] = {}
    test: dict[str, Obeyed] = {}
    with tqdm(total=len(models) * (len(GUIDANCES) * len(SAMPLERS) + 1), unit="setting", disable=not progress) as bar:
        for name, model in models.items():
            tried = {each: answered(name, each, chosen_on, "development") for each in settings(model)}
            best[name] = max(tried, key=lambda each: mean(tried[each]))
            test[name] = answered(name, best[name], reported, "test")

    differences = {
        "lazy_minus_crop_sibling_colour": difference(test["lazy"], test["crop"], "sibling_colour"),
        "lazy_minus_crop": difference(test["lazy"], test["crop"], *JUDGED),
        "lazy_minus_dense": difference(test["lazy"], test["image"], *JUDGED),
    }
    figures = {figure: value for name, one in differences.items() for figure, value in one.figures(name).items()}
    rows = {name: {figure: round(100 * float(each.mean()), 2) for figure, each in test[name].items()} for name in test}
    told = {"scenes": scenes, "development_seed": DEVELOPMENT, "test_seed": TEST, "quick": quick}
    record = {
        "figures": figures, "settings": told, "sampling": {name: asdict(one) for name, one in best.items()},
        "table": rows,
    }  # fmt: skip
    write(output / "evidence.md", evidence_table(rows, best, differences, told).encode())
    write(output / "evidence.json", (json.dumps(record, indent=2) + "\n").encode())
    return figures


def settings(model: LazyDiffusion) -> Iterator[Sampling]:
    """Every way that a model is tried to be sampled."""
    for sampler, guidance in product(SAMPLERS, GUIDANCES):
        yield replace(model.config.sampling, sampler=sampler, guidance=guidance)


def asked(seed: int, scenes: int) -> dict[str, list[ObjectQuestion]]:
    """Questions about objects; the siblings of all lie outside the square that a crop sees."""
    questions = {**object_questions(seed, scenes), "sibling": distant_siblings(seed, scenes)}
    return {kind: questions[kind] for kind in dict.fromkeys(PERCENTAGES[figure][0] for figure in JUDGED)}


def obey(
    model: LazyDiffusion, sampling: Sampling, questions: Mapping[str, Sequence[ObjectQuestion]], judge: Judge
) -> Obeyed:
    """Which questions a model answers as each figure's rule asks."""
    pictures = {kind: blended(some, made_of(model, some, sampling)) for kind, some in questions.items()}
    obeyed: Obeyed = {}
    for figure in JUDGED:
        kind, rule = PERCENTAGES[figure]
        pairs = zip(questions[kind], pictures[kind], strict=True)
        obeyed[figure] = np.array([rule(judge, *pair) for pair in pairs])
    return obeyed


def mean(obeyed: Obeyed) -> float:
    return float(np.mean([each.mean() for each in obeyed.values()]))


def difference(first: Obeyed, second: Obeyed, *figures: str) -> Interval:
    return paired_difference([first[figure] for figure in figures], [second[figure] for figure in figures])


def evidence_table(
    rows: Mapping[str, Mapping[str, float]], best: Mapping[str, Sampling], differences: Mapping[str, Interval],
    told: Mapping[str, Any],
) -> str:  # fmt: skip
    """Figures as Markdown."""
    titles = {"lazy_minus_crop_sibling_colour": "LazyDiffusion minus RegenerateCrop, sibling colour",
              "lazy_minus_crop": "LazyDiffusion minus RegenerateCrop, mean of all",
              "lazy_minus_dense": "LazyDiffusion minus RegenerateImage, mean of all"}  # fmt: skip
    lines = [
        "# LazyDiffusion beside its baselines, each at its best",
        "",
        f"{told['scenes']} scenes of seed {told['test_seed']} for each question; sampler and guidance of each model "
        f"were chosen on scenes of seed {told['development_seed']}. 20 steps. Bounds hold with 95 %, by a bootstrap of "
        "the differences of each question.",
        "",
        f"| | sampler | guidance | {' | '.join(figure.replace('_', ' ') for figure in JUDGED)} |",
        f"|---|---|--:|{'--:|' * len(JUDGED)}",
    ]
    for name, row in rows.items():
        cells = " | ".join(f"{row[figure]:.1f} %" for figure in JUDGED)
        lines.append(f"| {NAMES[name]} | {best[name].sampler} | {best[name].guidance:g} | {cells} |")
    lines += ["", "| Difference, percentage points | | from | to | questions |", "|---|--:|--:|--:|--:|"]
    for name, one in differences.items():
        lines.append(f"| {titles[name]} | {one.mean:+.1f} | {one.low:+.1f} | {one.high:+.1f} | {one.cases} |")
    return "\n".join(lines) + "\n"
