"""The measured quality of a model of the large world: the questions of the small one in it, how a result fits what was
asked, removal on photographs, and a page of pictures to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..core.files import whole_file
from ..core.pictures import from_array, grid
from ..model.lazydiffusion import LazyDiffusion
from ..world import random_world_sample
from .evaluate import BLEND, SEED, Rule, answer, edge_ratios, how_many, percentages, through_autoencoder
from .item_fit import fit_figures, world_fittable
from .laboratory import SMALL
from .photographs import PLACES, can_open_photographs, photograph_answers, photograph_figures
from .questions import Question, stream
from .report import Line, write_report
from .world_judge import WorldJudge
from .world_questions import STREAMS, WorldQuestion, ordinary_world_questions, world_questions

QUICK, QUICK_JUDGE = 10, 300  # scenes
FITTED = 100  # questions at most whose answers are fitted, a second or two each
PAGE, COLUMNS = 48, 8  # pictures on the page, with the seeds 0, 1, …

WORLD_PERCENTAGES: dict[str, tuple[str, Rule]] = {
    "sibling_colour": ("sibling", WorldJudge.colour),
    "sibling_shape": ("sibling", WorldJudge.shape),
    "swapped_colour": ("swapped", WorldJudge.former_colour),
    "swapped_follows_other": ("swapped", WorldJudge.colour),
    "swapped_shape": ("swapped", WorldJudge.shape),
    "caption_blank": ("caption_blank", WorldJudge.both),
    "caption_against_siblings": ("caption_against_siblings", WorldJudge.both),
    "several_kinds": ("several_kinds", WorldJudge.both),
    "removal": ("removal", WorldJudge.clean),
}
WORLD_LINES: dict[str, Line] = {
    "sibling_colour": Line("Colour of the siblings, by “another one”, “another tree” or “a tree”", "%", least=93),
    "sibling_shape": Line("Kind of the siblings, by the same captions", "%", least=93),
    "swapped_colour": Line("Control: siblings recoloured, yet the first colour", "%", most=5),
    "swapped_follows_other": Line("Siblings recoloured: their new colour, by “another one”", "%", least=93),
    "swapped_shape": Line("Kind of the siblings, by “another one” alone", "%", least=93),
    "caption_blank": Line("Kind and colour of the caption, on a blank canvas", "%", least=93),
    "caption_against_siblings": Line("Kind and colour of the caption, among siblings unlike it", "%", least=93),
    "several_kinds": Line("Kind and colour by “another tree”, among families of several kinds", "%", least=80),
    "removal": Line("“background”: nothing left", "%", least=93),
    "seam_ratio": Line("Jump across the mask's edge, after blending, relative to untouched renders", "", most=1.2),
    "roughness_ratio": Line("Mean absolute Laplacian in the hole, relative to untouched renders", "", 0.8, 1.2),
    "fit_psnr": Line("PSNR in the hole against the asked thing's own render where it fits best", "dB", least=22),
    "fit_psnr_before": Line("… of the laboratory's small model, in its own world", "dB"),
    "fit_psnr_minus_before": Line("… the gain", "dB", least=3),
    "item_psnr": Line("The same where that render shows the thing", "dB"),
    "stray_share": Line("Pixels of the hole that are neither the thing nor ground", "%", most=2),
    "stray_share_before": Line("… of the laboratory's small model, in its own world", "%"),
    "stray_share_of_before": Line("… the share that is left of them", "", most=0.333),
    "photo_psnr": Line("Removal on ten photographs: PSNR in the hole", "dB"),
    "photo_psnr_telea": Line("… of Telea's method", "dB"),
    "photo_psnr_biharmonic": Line("… of biharmonic inpainting", "dB"),
    "photo_psnr_minus_telea": Line("… ours against Telea's", "dB", least=-1),
    "photo_seam_ratio": Line("… jump across the mask's edge, relative to the photographs'", "", most=1.2),
    "photo_seam_ratio_telea": Line("… of Telea's method", ""),
    "photo_seam_ratio_biharmonic": Line("… of biharmonic inpainting", ""),
    "photo_roughness_ratio": Line("… Laplacian in the hole, relative to the photographs'", "", 0.7, 1.3),
    "photo_roughness_ratio_telea": Line("… of Telea's method", ""),
    "photo_roughness_ratio_biharmonic": Line("… of biharmonic inpainting", ""),
}


def evaluate_world(
    model: LazyDiffusion,
    output: Path,
    scenes: int = 200,
    seed: int = SEED,
    quick: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Measure a model on held-out pictures of the large world, of its canvas's size; returns the figures.

    scenes: questions of each kind; quick: at most QUICK, and a less trained judge
    Writes evaluation.json, evaluation.md, grid.png, page.webp and, where scikit-image and OpenCV are installed,
    photographs.webp into `output`, at the end. Every percentage has two ceilings: the same rule on the real renders,
    and on those that have gone through the model's autoencoder.
    Errors: ValueError for fewer than one scene.
    """
    scenes = how_many(scenes, QUICK if quick else scenes)
    output.mkdir(parents=True, exist_ok=True)
    size, sampling = model.config.network.canvas, model.config.sampling
    judge = WorldJudge(seed, QUICK_JUDGE) if quick else WorldJudge(seed)
    judged = world_questions(seed, scenes, size)
    asked: dict[str, Sequence[Question]] = {**judged, "ordinary": ordinary_world_questions(seed, scenes, size)}
    shown = page_questions(seed, size)
    with tqdm(total=sum(map(len, asked.values())) + PAGE, unit="picture", disable=not progress) as bar:
        answers = {kind: answer(model, questions, sampling, bar) for kind, questions in asked.items()}
        page = answer(model, shown, sampling, bar)

    renders = {kind: np.stack([question.image for question in questions]) for kind, questions in asked.items()}
    coded = {kind: through_autoencoder(model, questions) for kind, questions in asked.items()}
    figures: dict[str, float] = {}
    for ending, pictures in {"": answers, "_ceiling": renders, "_autoencoder": coded}.items():
        figures |= percentages(judge, WORLD_PERCENTAGES, judged, pictures, ending)
    for ending, pictures in {"": answers, "_autoencoder": coded}.items():
        figures |= edge_ratios(pictures["ordinary"], asked["ordinary"], ending)
        figures |= fit_of_siblings(pictures["sibling"], judged["sibling"], ending)
    figures |= against_the_small_model(figures)
    photographs = photograph_answers(model, size) if can_open_photographs() else None
    if photographs is not None:
        figures |= photograph_figures(photographs)
    figures = {figure: round(value, 3) for figure, value in figures.items()}

    settings = {
        "checkpoint": model.config.name, "fingerprint": model.fingerprint, "seed": seed, "quick": quick,
        "sampling": asdict(sampling), "blend": BLEND,
    }  # fmt: skip
    counts = {kind: len(questions) for kind, questions in asked.items()}
    counts["fitted"] = min(len(judged["sibling"]), FITTED)
    save_page(output / "page.webp", page, [f"{i}: {question.caption}" for i, question in enumerate(shown)])
    if photographs is not None:
        cells = [picture for row in zip(*photographs.values(), strict=True) for picture in row]
        save_page(output / "photographs.webp", cells, list(photographs) * len(PLACES), len(photographs))
    write_report(output, figures, settings, counts, asked, answers, WORLD_LINES)
    return figures


def fit_of_siblings(pictures: np.ndarray, asked: Sequence[WorldQuestion], ending: str) -> dict[str, float]:
    fittables = [world_fittable(question.scene, question.target, question.size) for question in asked[:FITTED]]
    return fit_figures(pictures[:FITTED], [question.mask for question in asked[:FITTED]], fittables, ending)


def against_the_small_model(figures: Mapping[str, float]) -> dict[str, float]:
    """How results of the model before this one, now the laboratory's, fit what was asked; measured by the same code."""
    before = json.loads(SMALL.with_suffix(".json").read_text("utf-8"))["figures"]
    return {
        "fit_psnr_before": before["fit_psnr"],
        "fit_psnr_minus_before": figures["fit_psnr"] - before["fit_psnr"],
        "stray_share_before": before["stray_share"],
        "stray_share_of_before": figures["stray_share"] / before["stray_share"],
    }


def page_questions(seed: int, size: int) -> list[Question]:
    """Samples as in training, none of them chosen."""
    rng = stream(seed, STREAMS + 50)
    samples = [random_world_sample(rng, size) for _ in range(PAGE)]
    return [Question(sample.image, sample.mask, sample.caption) for sample in samples]


def save_page(
    path: Path, pictures: Sequence[np.ndarray] | np.ndarray, captions: Sequence[str], columns: int = COLUMNS
) -> None:
    """Pictures at full size, with their captions."""
    cells = [(from_array(picture)[0], caption) for picture, caption in zip(pictures, captions, strict=True)]
    with whole_file(path) as unfinished:
        grid(cells, columns, enlarge=1).save(unfinished, "WEBP", quality=92)
