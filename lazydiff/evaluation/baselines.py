"""The paper's baselines beside LazyDiffusion, and what a KV context loses of the one that computes every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..cache.kv_cache import THRESHOLD, KVSettings, dilate
from ..cache.recording import RecordingCache, empty_cache, recorded_noise
from ..core.masks import to_grid
from ..model.config import NetworkConfig, Sampling
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.decode import decode
from ..scenes import CANVAS, COLOURS, SHAPES, TOKEN, Thing, describe
from .baselines_report import Row, write_baselines
from .edges import seam
from .evaluate import BLEND, SEED, asked_tensors, blended, how_many, in_batches, painted, percentage
from .judge import Judge
from .questions import Question, distant_siblings, object_questions, ordinary_questions
from .regenerate import encode_everything, regenerate, sample_dense

QUICK = 6  # scenes
FEW = (8, 4)  # steps of those samplings that are measured beside the model's own 20
STEP_COUNTS = {20: "", **{steps: f", {steps} steps" for steps in FEW}}  # and how their rows are called
EQUAL = 100.0  # dB, of pictures without any difference
JUDGED = ("sibling_colour", "sibling_shape", "caption_blank", "caption_against_siblings", "removal")
TOKENS = (CANVAS // TOKEN) ** 2  # of a whole canvas
# What a sampling asked for whose anchors another one reuses; its seed lies beyond those of the questions.
OTHER = [describe(Thing(shape, colour, "plain", "large")) for shape in SHAPES for colour in COLOURS]
ANOTHER = 10**6


ANCHORS = KVSettings(mode="anchors")  # as many as the keys' change asks for


class Setting(NamedTuple):
    """What is measured in one row of the table.

    kv: of the KV context; None: there is none
    other_noise: visible tokens have the noise of recordings, and every step computes everything
    reuse: the anchors were left by a sampling of another prompt, with the same seed or another one too
    part: it is asked one in so many of the questions
    steps: of the sampling; 0: the model's own
    """

    name: str
    model: Literal["image", "lazy", "crop"] = "image"
    kv: KVSettings | None = None
    reuse: Literal["", "prompt", "seed"] = ""
    part: int = 1
    steps: int = 0
    other_noise: bool = False


SETTINGS = (
    Setting("dense"),
    Setting("other visible noise", other_noise=True, part=3),
    Setting("recorded", kv=KVSettings()),
    Setting("recorded, 1 level", kv=KVSettings(levels=1), part=3),
    Setting("recorded, 3 levels", kv=KVSettings(levels=3), part=3),
    Setting("1 anchor", kv=KVSettings(1)),
    Setting("2 anchors", kv=KVSettings(2)),
    Setting("4 anchors", kv=KVSettings(4)),
    Setting("8 anchors", kv=KVSettings(8)),
    Setting("every step", kv=KVSettings(10**6), part=3),
    Setting("automatic", kv=ANCHORS),
    Setting("automatic, ring 0", kv=ANCHORS._replace(ring=0), part=3),
    Setting("automatic, ring 2", kv=ANCHORS._replace(ring=2), part=3),
    Setting("4 anchors, ring 0", kv=KVSettings(4, ring=0), part=3),
    Setting("4 anchors, ring 2", kv=KVSettings(4, ring=2), part=3),
    Setting("automatic, fp8", kv=ANCHORS._replace(precision="fp8"), part=3),
    Setting("anchors of another prompt", kv=ANCHORS, reuse="prompt", part=3),
    Setting("anchors of another prompt and seed", kv=ANCHORS, reuse="seed", part=3),
    Setting("LazyDiffusion", "lazy"),
    Setting("RegenerateCrop", "crop"),
    *(
        Setting(setting.name + STEP_COUNTS[steps], kv=setting.kv, part=setting.part, steps=steps,
                other_noise=setting.other_noise)
        for steps in FEW
        for setting in (
            Setting("dense"), Setting("other visible noise", other_noise=True, part=3),
            Setting("recorded", kv=KVSettings()), Setting("recorded, 2 levels", kv=KVSettings(levels=2), part=3),
            Setting("1 anchor", kv=KVSettings(1), part=3), Setting("automatic", kv=ANCHORS, part=3),
        )
    ),
)


def evaluate_baselines(
    models: Mapping[str, LazyDiffusion],
    output: Path,
    scenes: int = 200,
    seed: int = SEED,
    quick: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Measure LazyDiffusion, RegenerateImage (dense, and with KV contexts) and RegenerateCrop; returns the figures.

    models: those three, as “lazy”, “image” and “crop”
    scenes: questions of each kind; siblings all lie outside the square that the crop sees
    quick: at most QUICK scenes, and a less trained judge
    Writes baselines.json, baselines.md and baselines.png into `output`, all at the end: an interrupted run leaves none.
    Errors: ValueError for fewer than one scene, or a model that is not what it is taken for.
    """
    check_models(models)
    scenes = how_many(scenes, QUICK if quick else scenes)
    output.mkdir(parents=True, exist_ok=True)
    judge = Judge(seed, scenes=400 if quick else 1000)
    objects = {**object_questions(seed, scenes), "sibling": distant_siblings(seed, scenes)}
    del objects["swapped"]
    asked: dict[str, Sequence[Question]] = {**objects, "ordinary": ordinary_questions(seed, scenes)}

    rows: list[Row] = []
    dense: dict[str, Tensor] = {}
    with tqdm(total=len(SETTINGS), unit="row", disable=not progress) as bar:
        for setting in SETTINGS:
            bar.set_postfix_str(setting.name)
            some = {kind: questions[: -(-scenes // setting.part)] for kind, questions in asked.items()}
            made = {kind: generated(models[setting.model], setting, questions) for kind, questions in some.items()}
            pictures = {kind: blended(some[kind], one.pictures) for kind, one in made.items()}
            judged = {kind: questions[: len(some[kind])] for kind, questions in objects.items()}
            figures = {figure: percentage(judge, figure, judged, pictures) for figure in JUDGED}
            figures["seam_ratio"] = seam_ratio(some["ordinary"], pictures["ordinary"])
            if setting.name.startswith("dense"):  # those that follow have as many steps
                dense = {kind: one.pictures for kind, one in made.items()}
            if setting.model == "image":
                likeness = np.concatenate([psnr(some[kind], one.pictures, dense[kind]) for kind, one in made.items()])
                figures |= {"psnr": float(likeness.mean()), "psnr_90": float(np.percentile(likeness, 10))}
            steps, cost = (np.concatenate([getattr(one, name) for one in made.values()]) for name in ("steps", "cost"))
            figures = {figure: round(value, 3) for figure, value in figures.items()}
            rows.append(Row(setting.name, len(some["ordinary"]), float(steps.mean()), float(cost.mean()), figures))
            bar.update()

    figures = headline({row.name: row.figures for row in rows})
    settings = {
        "checkpoints": {name: model.config.name for name, model in models.items()}, "seed": seed, "quick": quick,
        "sampling": asdict(models["image"].config.sampling), "blend": BLEND, "threshold": THRESHOLD,
    }  # fmt: skip
    write_baselines(output, figures, settings, rows)
    return figures


def check_models(models: Mapping[str, LazyDiffusion]) -> None:
    """Errors: ValueError for a model that is not what it is taken for."""
    for name, kind in {"lazy": (False, CANVAS), "image": (True, CANVAS), "crop": (True, CANVAS // 2)}.items():
        if (models[name].config.network.dense, models[name].config.network.canvas) != kind:
            raise ValueError(f"{models[name].config.name} cannot be measured as the model of kind “{name}”")


class Generated(NamedTuple):
    """What a model has made of questions, and for each of them what that took."""

    pictures: Tensor  # [S, 3, 96, 96] in 0…1, before blending
    steps: np.ndarray  # that computed every token
    cost: np.ndarray  # of the decoder, as a share of computing every token at every step


def generated(model: LazyDiffusion, setting: Setting, questions: Sequence[Question]) -> Generated:
    """The answers of one model to questions of one kind; question i is answered with seed i."""
    sampling = replace(model.config.sampling, steps=setting.steps or model.config.sampling.steps)
    if setting.kv is not None:
        answers = [through_cache(model, setting, sampling, questions, i) for i in range(len(questions))]
        pictures, steps, cost = zip(*answers, strict=True)
        return Generated(torch.cat(pictures), np.array(steps), np.array(cost))
    network, count = model.config.network, len(questions)
    computed = [network.grid**2] * count
    if not network.dense:
        _, mask = asked_tensors(questions, torch.device("cpu"))
        computed = to_grid(mask, network.token).sum((1, 2, 3)).int().tolist()
    shares = np.array([decoder_work(network, tokens) / decoder_work(network, TOKENS) for tokens in computed])
    dense = np.full(count, sampling.steps if setting.model == "image" else 0)
    return Generated(made_of(model, questions, sampling, setting.other_noise), dense, shares)


def made_of(
    model: LazyDiffusion, questions: Sequence[Question], sampling: Sampling, other_noise: bool = False
) -> Tensor:
    """What a model makes of the questions' canvases, [S, 3, 96, 96] in 0…1, before it is blended with them."""
    network = model.config.network
    if not network.dense:
        return painted(model, questions, sampling)

    def paint(image: Tensor, mask: Tensor, captions: list[str], seeds: list[int]) -> Tensor:
        if not other_noise:
            return regenerate(model, image, mask, captions, seeds, sampling, crop=network.canvas < CANVAS)
        context = encode_everything(model, image, mask)
        noise = recorded_noise(context.canvas.shape).to(image.device)
        return decode(model, context, sample_dense(model, context, captions, seeds, sampling, visible=noise))

    return in_batches(questions, paint, model.device, network.token)


@torch.no_grad()
def through_cache(
    model: LazyDiffusion, setting: Setting, sampling: Sampling, questions: Sequence[Question], number: int
) -> tuple[Tensor, int, float]:
    """One answer by way of a KV context: the picture [1, 3, 96, 96], its steps that computed everything, its cost.

    One canvas at a time: in a batch of several, each would have the holes of all computed.
    """
    assert setting.kv is not None
    device = next(model.parameters()).device
    context = encode_everything(model, *asked_tensors(questions[number : number + 1], device))
    cache, network = empty_cache(setting.kv._replace(reuse=True)), model.config.network  # its anchors are counted
    if setting.reuse:
        seed = number + (ANOTHER if setting.reuse == "seed" else 0)
        sample_dense(model, context, [OTHER[number % len(OTHER)]], [seed], sampling, cache)
    there = cache.count
    tokens = sample_dense(model, context, [questions[number].caption], [number], sampling, cache)
    recorded = len(cache.levels) if isinstance(cache, RecordingCache) else cache.count - there
    computed, visible = dilate(context.hole, setting.kv.ring).count, TOKENS - context.hole.count
    dense, tokens_recorded = (0, visible) if setting.kv.recorded else (recorded, TOKENS)
    work = recorded * decoder_work(network, tokens_recorded)
    work += (sampling.steps - dense) * decoder_work(network, computed, TOKENS)
    return decode(model, context, tokens), dense, work / (sampling.steps * decoder_work(network, TOKENS))


def decoder_work(network: NetworkConfig, tokens: int, keys: int | None = None) -> int:
    return network.macs(tokens, network.text_length, keys)


def psnr(questions: Sequence[Question], pictures: Tensor, expected: Tensor) -> np.ndarray:
    """Likeness [S] of two lists of pictures in their holes, in dB, at most EQUAL; the second may be longer."""
    _, mask = asked_tensors(questions, pictures.device)
    error = ((pictures - expected[: len(pictures)]).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    return (-10 * error.log10()).clamp(max=EQUAL).cpu().numpy()


def seam_ratio(questions: Sequence[Question], pictures: np.ndarray) -> float:
    holes, renders = (np.stack([getattr(q, name) for q in questions]) for name in ("mask", "image"))
    return seam(pictures, holes) / seam(renders, holes)


def headline(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures that stand for the whole table."""
    dense, automatic = rows["dense"], rows["automatic"]
    words = "caption_blank", "caption_against_siblings"
    figures = {f"psnr_{steps}_steps": rows[f"recorded{few}"]["psnr"] for steps, few in STEP_COUNTS.items()}
    figures |= {
        "psnr_other_visible_noise": rows["other visible noise"]["psnr"],
        "psnr_auto": automatic["psnr"],
        "sibling_colour_loss": max(lost(rows, few, "sibling_colour") for few in STEP_COUNTS.values()),
        "caption_loss": max(lost(rows, few, *words) for few in STEP_COUNTS.values()),
        "lazy_sibling_colour": rows["LazyDiffusion"]["sibling_colour"],
        "dense_sibling_colour": dense["sibling_colour"],
        "crop_sibling_colour": rows["RegenerateCrop"]["sibling_colour"],
    }
    return {figure: round(value, 3) for figure, value in figures.items()}


def lost(rows: Mapping[str, Mapping[str, float]], few: str, *names: str) -> float:
    """What the default loses against every token at every step of as many steps, the mean of some figures."""
    return sum(rows[f"dense{few}"][name] - rows[f"recorded{few}"][name] for name in names) / len(names)
