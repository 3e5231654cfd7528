"""The measured quality of a model: questions asked, answers judged, everything written at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..cache.module_skip import SkipPolicy
from ..core.masks import to_grid
from ..model.config import Sampling
from ..model.latent_space import to_pixels
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.decode import Blend, composite, decode
from ..pipeline.encode import encode
from ..pipeline.sample import SampleSettings, sample
from ..scenes import CANVAS
from .edges import roughness, seam
from .item_fit import fit_figures, scene_fittable
from .judge import Judge
from .questions import ObjectQuestion, Question, object_questions, ordinary_questions
from .report import write_report

SEED = 1
QUICK = 40  # scenes
BATCH = 50
BLEND: Blend = "poisson"

Rule = Callable[[Any, Any, np.ndarray], bool]  # of a judge, for a question and a picture

# figure: the questions it is a percentage of, and the rule that must hold
PERCENTAGES: dict[str, tuple[str, Rule]] = {
    "sibling_colour": ("sibling", Judge.colour),
    "sibling_shape": ("sibling", Judge.shape),
    "swapped_colour": ("swapped", Judge.former_colour),
    "swapped_follows_other": ("swapped", Judge.colour),
    "swapped_shape": ("swapped", Judge.shape),
    "caption_blank": ("caption_blank", Judge.both),
    "caption_against_siblings": ("caption_against_siblings", Judge.both),
    "removal": ("removal", Judge.clean),
}
MAIN = ("sibling_colour", "sibling_shape", "caption_blank", "removal")
COMPARED = ("sibling", "caption_blank", "removal")  # the questions of MAIN


def evaluate(
    model: LazyDiffusion,
    output: Path,
    scenes: int = 500,
    seed: int = SEED,
    quick: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Measure a model on held-out scenes, with its own sampler settings and Poisson blending; returns the figures.

    scenes: questions of each kind, a fifth of which also compare numbers of steps
    quick: at most QUICK scenes, and a less trained judge
    Writes evaluation.json, evaluation.md and grid.png into `output`, all at the end: an interrupted run leaves none.
    Every percentage has a ceiling: the same rule on the real renders.
    Errors: ValueError for fewer than one scene, or a model of another canvas than the scenes'.
    """
    if model.config.network.canvas != CANVAS:
        raise ValueError(f"scenes are {CANVAS} px wide, and this model is made for {model.config.network.canvas} px")
    scenes = how_many(scenes, QUICK if quick else scenes)
    output.mkdir(parents=True, exist_ok=True)
    judge = Judge(seed, scenes=400 if quick else 1000)
    judged = object_questions(seed, scenes)
    asked: dict[str, Sequence[Question]] = {**judged, "ordinary": ordinary_questions(seed, scenes)}
    compared = {kind: judged[kind][: -(-scenes // 5)] for kind in COMPARED}

    sampling = model.config.sampling
    rows = sum(map(len, asked.values())) + 2 * sum(map(len, compared.values()))
    with tqdm(total=rows, unit="picture", disable=not progress) as bar:
        answers = {kind: answer(model, questions, sampling, bar) for kind, questions in asked.items()}
        few, many = (
            {kind: answer(model, questions, setting, bar) for kind, questions in compared.items()}
            for setting in (replace(sampling, steps=20), replace(sampling, steps=50))
        )

    renders = {kind: np.stack([question.image for question in questions]) for kind, questions in asked.items()}
    figures = percentages(judge, PERCENTAGES, judged, answers)
    figures |= percentages(judge, PERCENTAGES, judged, renders, "_ceiling")
    figures |= edge_ratios(answers["ordinary"], asked["ordinary"])
    siblings = judged["sibling"]
    masks, fittables = [question.mask for question in siblings], [scene_fittable(question) for question in siblings]
    figures |= fit_figures(answers["sibling"], masks, fittables)
    figures |= fit_figures(through_autoencoder(model, siblings), masks, fittables, "_autoencoder")
    gains = [percentage(judge, main, compared, few) - percentage(judge, main, compared, many) for main in MAIN]
    figures["steps20_minus_steps50"] = sum(gains) / len(gains)
    figures = {figure: round(value, 3) for figure, value in figures.items()}

    settings = {
        "checkpoint": model.config.name, "fingerprint": model.fingerprint, "seed": seed, "quick": quick,
        "sampling": asdict(sampling), "blend": BLEND,
    }  # fmt: skip
    counts = {kind: len(questions) for kind, questions in asked.items()}
    counts["steps20_and_50"] = len(compared["sibling"])
    write_report(output, figures, settings, counts, asked, answers)
    return figures


def how_many(scenes: int, most: int, least: int = 1) -> int:
    """Errors: ValueError for fewer questions of a kind than can be measured."""
    if scenes < least:
        raise ValueError(f"{scenes} scenes: choose at least {least}")
    return min(scenes, most)


def answer(
    model: LazyDiffusion, questions: Sequence[Question], sampling: Sampling, bar: tqdm | None = None,
    gates: SkipPolicy | None = None,
) -> np.ndarray:  # fmt: skip
    """The model's pictures, uint8 [S, H, W, 3]; question i is answered with seed i."""
    return blended(questions, painted(model, questions, sampling, bar, gates))


@torch.no_grad()
def painted(
    model: LazyDiffusion, questions: Sequence[Question], sampling: Sampling, bar: tqdm | None = None,
    gates: SkipPolicy | None = None,
) -> Tensor:  # fmt: skip
    """What the model makes of the canvases, [S, 3, H, W] in 0…1, before it is blended with them."""

    def paint(image: Tensor, mask: Tensor, captions: list[str], seeds: list[int]) -> Tensor:
        context = encode(model, image, mask)
        return decode(model, context, sample(model, context, captions, seeds, SampleSettings(sampling, skip=gates)))

    return in_batches(questions, paint, next(model.parameters()).device, model.config.network.token, bar)


def in_batches(
    questions: Sequence[Question], paint: Callable[[Tensor, Tensor, list[str], list[int]], Tensor],
    device: torch.device, token: int, bar: tqdm | None = None,
) -> Tensor:  # fmt: skip
    """Pictures [S, 3, H, W] that `paint` makes of canvases, masks, captions and seeds (question i has seed i).

    Questions with similar numbers of hole tokens share a batch, so that little is padded.
    """
    canvas, mask = asked_tensors(questions, device)
    pictures = torch.empty_like(canvas)
    order = to_grid(mask, token).sum((1, 2, 3)).argsort(stable=True)
    for rows in order.split(rows_of(canvas)):
        numbers = rows.tolist()
        pictures[rows] = paint(canvas[rows], mask[rows], [questions[i].caption for i in numbers], numbers)
        if bar is not None:
            bar.update(len(rows))
    return pictures


def blended(questions: Sequence[Question], pictures: Tensor) -> np.ndarray:
    """What was made of the questions' canvases, blended with them: uint8 [S, H, W, 3]."""
    canvas, mask = asked_tensors(questions, pictures.device)
    batches = zip(*(each.split(rows_of(canvas)) for each in (canvas, pictures, mask)), strict=True)
    pictures = torch.cat([composite(image, made, hole, BLEND) for image, made, hole in batches])
    return rearrange((pictures * 255).round().byte(), "s c h w -> s h w c").cpu().numpy()


def rows_of(canvas: Tensor) -> int:
    """How many canvases are computed at a time."""
    return max(BATCH * CANVAS**2 // canvas[0, 0].numel(), 1)


@torch.no_grad()
def through_autoencoder(model: LazyDiffusion, questions: Sequence[Question]) -> np.ndarray:
    """The real renders, in whose holes is what the model's latent space keeps of them: uint8 [S, H, W, 3]."""
    images = torch.from_numpy(np.stack([question.image for question in questions])).permute(0, 3, 1, 2)
    batches = (batch.to(model.device).float() / 127.5 - 1 for batch in images.split(rows_of(images)))
    coded = [to_pixels(model.latent.decode(model.latent.encode(batch))) for batch in batches]
    return blended(questions, torch.cat(coded))


def edge_ratios(pictures: np.ndarray, questions: Sequence[Question], ending: str = "") -> dict[str, float]:
    """Seam and roughness of results against the real renders. ending: of the figures' names"""
    renders, holes = np.stack([q.image for q in questions]), np.stack([q.mask for q in questions])
    measures = {"seam_ratio": seam, "roughness_ratio": roughness}
    return {f"{name}{ending}": measure(pictures, holes) / measure(renders, holes) for name, measure in measures.items()}


def asked_tensors(questions: Sequence[Question], device: torch.device) -> tuple[Tensor, Tensor]:
    """Canvases [S, 3, H, W] in 0…1 and masks [S, 1, H, W]."""
    canvas = torch.from_numpy(np.stack([question.canvas for question in questions])).to(device)
    mask = torch.from_numpy(np.stack([question.mask for question in questions])).to(device)
    return rearrange(canvas, "s h w c -> s c h w").float() / 255, mask[:, None].float()


def percentage(
    judge: Judge, figure: str, asked: Mapping[str, Sequence[ObjectQuestion]], pictures: Mapping[str, np.ndarray]
) -> float:
    """How many of the pictures obey the figure's rule, in percent."""
    return percentages(judge, {figure: PERCENTAGES[figure]}, asked, pictures)[figure]


def percentages(
    judge: Any, rules: Mapping[str, tuple[str, Rule]], asked: Mapping[str, Sequence[Question]],
    pictures: Mapping[str, np.ndarray], ending: str = "",
) -> dict[str, float]:  # fmt: skip
    """How many of the pictures obey each figure's rule, in percent. ending: of the figures' names"""
    found = obeyed(judge, rules, asked, pictures)
    return {f"{figure}{ending}": 100 * float(each.mean()) for figure, each in found.items()}


def obeyed(
    judge: Any, rules: Mapping[str, tuple[str, Rule]], asked: Mapping[str, Sequence[Question]],
    pictures: Mapping[str, Iterable[np.ndarray]],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Which of the pictures obey each figure's rule, bool [S]."""
    return {
        figure: np.array([rule(judge, *pair) for pair in zip(asked[kind], pictures[kind], strict=True)])
        for figure, (kind, rule) in rules.items()
    }

