"""How well the masks that a model finds fit the objects: intersection over union on scenes that it never saw.

    python -m benchmarks.masks --output DIR [--device cpu] [--scenes 200] [--seed 1] [--quick] [--only METHOD]

Prints a table and writes `masks.json` and `masks.png`; of one method alone it prints the row and writes nothing. The
model is RegenerateImage, the trained baseline that computes every token. In one half of the scenes an object stands
alone, in the other among two or more objects of which no other has its shape or colour. What is wanted is the pixels of
its body, without its shadow:

    attention     the prompt describes the object ("a striped blue tree"), and all its words but "a" are pointed at
    DiffEdit      the same prompt against none, on the same noises
    difference    the prompt that describes the object becomes one of another shape and colour

Tokens are 8 px wide: heat maps are enlarged to pixels bicubically before their threshold. All settings were chosen on
scenes of seed 2, DiffEdit's threshold too where it is called tuned: there it has our evidence and edges, and the
difference from attention has bounds. Cost is processor time, in units of one denoising step of the same picture by the
same model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lazydiff.auto_mask.attention_mask import AttentionSettings, Thresholds, attention_mask
from lazydiff.auto_mask.difference_mask import (
    DIFFEDIT_THRESHOLD,
    DifferenceSettings,
    diffedit_heat,
    prompt_difference_mask,
)
from lazydiff.auto_mask.evidence import Evidence
from lazydiff.auto_mask.maps import resize
from lazydiff.auto_mask.noisy_picture import Found, NoisyPicture
from lazydiff.core.masks import guided_filter
from lazydiff.core.pictures import from_array, grid
from lazydiff.evaluation.evaluate import SEED
from lazydiff.evaluation.intervals import paired_difference
from lazydiff.evaluation.laboratory import WEIGHTS
from lazydiff.evaluation.questions import stream
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.scenes import TOKEN, Placed, Scene, describe, random_scene, random_thing, render, silhouette

from .harness import Harness, arguments

MODEL = WEIGHTS / "regenerate-image.safetensors"
QUICK = 6  # scenes
SHOWN = 8
SEEDS = (0, 1, 2)
DEVELOPMENT = 2  # seed of the scenes that settings are chosen on
TRIED = [i / 20 for i in range(1, 20)]  # thresholds, to tell how much of a difference is one of threshold


@dataclass(frozen=True, eq=False)
class MaskQuestion:
    """A scene with one object to be found."""

    scene: Scene
    placed: Placed
    source: str  # what it is
    target: str  # what it is to become

    @property
    def words(self) -> str:
        return self.source.split(" ", 1)[1]

    @property
    def image(self) -> Tensor:
        return from_array(render(self.scene))

    @property
    def truth(self) -> Tensor:
        return torch.from_numpy(silhouette(self.placed))[None, None].float()


def unlike(rng: np.random.Generator, placed: Placed) -> Placed:
    """The same place with an object of another shape and colour."""
    thing = placed.thing
    while thing.shape == placed.thing.shape or thing.colour == placed.thing.colour:
        thing = replace(random_thing(rng), size=placed.thing.size)
    return replace(placed, thing=thing)


def question(rng: np.random.Generator, alone: bool) -> MaskQuestion:
    scene = random_scene(rng, siblings=1 if alone else 2, odd=0)
    index = int(rng.integers(len(scene.things)))
    placed = unlike(rng, scene.things[index])
    others = () if alone else (*scene.things[:index], *scene.things[index + 1 :])
    scene = replace(scene, things=(*others, placed))
    return MaskQuestion(scene, placed, describe(placed.thing), describe(unlike(rng, placed).thing))


def mask_questions(seed: int, scenes: int) -> list[MaskQuestion]:
    """Alone and among others in turn; a longer list begins with the shorter one."""
    rng = stream(seed, 6)
    return [question(rng, alone=i % 2 == 0) for i in range(scenes)]


def diffedit_mask(
    model: LazyDiffusion, image: Tensor, prompt: str, evidence: bool = False, edges: bool = False
) -> Found:
    """DiffEdit's mask of a picture: the prompt's estimate of the half noisy picture against that without a prompt."""
    noisy = NoisyPicture(model, image, SEEDS, strength=0.5)
    named, unnamed = (noisy.cells(noisy.denoiser(text)(noisy.start, 0.5)) for text in (prompt, ""))
    gained = Evidence()
    gained.add(noisy.picture, named, unnamed)
    heat = noisy.finish(diffedit_heat(named, unnamed), gained if evidence else None, edges)
    return Found((heat > DIFFEDIT_THRESHOLD).float(), heat)


class Method(NamedTuple):
    """part: it is asked one in so many of the questions."""

    name: str
    find: Callable[[LazyDiffusion, MaskQuestion], Found]
    part: int = 1


def by_attention(model: LazyDiffusion, asked: MaskQuestion, words: str = "", **settings: Any) -> Found:
    return attention_mask(model, asked.image, asked.source, words, AttentionSettings(SEEDS, **settings))


def by_attention_to_words(model: LazyDiffusion, asked: MaskQuestion, **settings: Any) -> Found:
    return by_attention(model, asked, words=asked.words, **settings)


def by_difference(model: LazyDiffusion, asked: MaskQuestion, **settings: Any) -> Found:
    given = DifferenceSettings(SEEDS, **settings)
    return prompt_difference_mask(model, asked.image, asked.source, asked.target, given)


def by_diffedit(model: LazyDiffusion, asked: MaskQuestion, **settings: bool) -> Found:
    return diffedit_mask(model, asked.image, asked.source, **settings)


PUBLISHED = {"evidence": False, "edges": False}
ATTENTION, DIFFEDIT, DIFFERENCE = "attention", "DiffEdit", "difference"
PART = 5  # one in so many scenes for what is left out or added
METHODS = (
    Method(ATTENTION, by_attention_to_words),
    Method(DIFFEDIT, by_diffedit),
    Method(DIFFERENCE, by_difference),
    Method("attention, words not pointed at", by_attention, PART),
    Method("attention, not led to edges", partial(by_attention_to_words, edges=False), PART),
    Method("attention without evidence", partial(by_attention_to_words, evidence=False), PART),
    Method("attention alone", partial(by_attention_to_words, **PUBLISHED), PART),
    # Thresholds and strength of InstDiffEdit's benchmark; half of 10 steps instead of 25 of 50.
    Method("attention as published", partial(by_attention, steps=5, thresholds=Thresholds(), **PUBLISHED), PART),
    Method("DiffEdit led to edges", partial(by_diffedit, edges=True), PART),
    Method("DiffEdit with evidence and edges", partial(by_diffedit, evidence=True, edges=True), PART),
    Method("difference, not led to edges", partial(by_difference, edges=False), PART),
    Method("difference without evidence", partial(by_difference, evidence=False), PART),
    Method("difference, stabilised", partial(by_difference, stabilise=True), PART),
    # 2 of 10 steps instead of 10 of 50.
    Method("difference as published", partial(by_difference, first=2, **PUBLISHED), PART),
)


def overlap(mask: Tensor, truth: Tensor) -> float:
    """Intersection over union of two masks of zeros and ones."""
    return float((mask * truth).sum() / torch.maximum(mask, truth).sum().clamp(min=1))


@dataclass(frozen=True)
class Row:
    """IoU in percent, averaged over scenes."""

    name: str
    scenes: int
    all: float
    alone: float
    among: float
    best: float  # with the one threshold of the heat that is best on these very scenes
    best_threshold: float


def row(name: str, masks: Sequence[Tensor], heats: Sequence[Tensor], truths: Sequence[Tensor]) -> Row:
    """truths: may be more than the masks"""
    truths = truths[: len(masks)]
    fits = [100 * overlap(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
    tried = [
        statistics.mean(100 * overlap((heat > level).float(), truth) for heat, truth in zip(heats, truths, strict=True))
        for level in TRIED
    ]
    best = max(range(len(TRIED)), key=tried.__getitem__)
    means = (statistics.mean(part) for part in (fits, fits[::2], fits[1::2]))
    return Row(name, len(masks), *(round(mean, 2) for mean in means), round(tried[best], 2), TRIED[best])


def exact(truth: Tensor, edges: Tensor | None, bicubic: bool) -> Tensor:
    """The exact mask as seen through tokens: what each covers of the object, enlarged."""
    covered, size = F.avg_pool2d(truth, TOKEN), (truth.shape[-2], truth.shape[-1])
    heat = resize(covered[0], size)[None] if bicubic else F.interpolate(covered, size)
    return heat if edges is None else guided_filter(heat, edges, 6)


def ceilings(asked: Sequence[MaskQuestion]) -> list[Row]:
    truths = [one.truth for one in asked]
    kinds = {
        "exact mask in whole tokens": [exact(truth, None, bicubic=False) for truth in truths],
        "exact mask of tokens, enlarged": [exact(truth, None, bicubic=True) for truth in truths],
        "the same, led to edges": [exact(one.truth, one.image, bicubic=True) for one in asked],
    }
    return [row(name, [(h > 0.5).float() for h in heats], heats, truths) for name, heats in kinds.items()]


def cost(model: LazyDiffusion, asked: Sequence[MaskQuestion], method: Method, clock: Callable[[], float]) -> float:
    """Time of a mask in denoising steps of one picture, the median of turns."""
    ratios = []
    for one in asked:
        noisy = NoisyPicture(model, one.image, [0], strength=0.5)
        step = noisy.denoiser(one.source)
        started = clock()
        for _ in range(5):
            step(noisy.start, 0.5)
        stepped = clock()
        method.find(model, one)
        ratios.append(5 * (clock() - stepped) / (stepped - started))
    return statistics.median(ratios)


def measure(
    model: LazyDiffusion, asked: Sequence[MaskQuestion], methods: Sequence[Method]
) -> tuple[dict[str, list[Found]], list[Row]]:
    """What the methods find, by their names, and how well it fits."""
    truths = [one.truth for one in asked]
    found: dict[str, list[Found]] = {}
    rows: list[Row] = []
    with tqdm(total=sum(-(-len(asked) // method.part) for method in methods), unit="mask", mininterval=20) as bar:
        for method in methods:
            found[method.name] = []
            for one in asked[: -(-len(asked) // method.part)]:
                found[method.name].append(method.find(model, one))
                bar.update()
            masks, heats = zip(*found[method.name], strict=True)
            rows.append(row(method.name, masks, heats, truths))
            bar.write(table(rows[-1:]))
    return found, rows


def tuned_difference(
    model: LazyDiffusion, asked: Sequence[MaskQuestion], found: Sequence[Found]
) -> tuple[float, dict[str, float]]:
    """DiffEdit's best threshold on other scenes, with our additions, and how much better attention fits, with bounds.

    found: by attention
    """
    truths = [one.truth for one in asked]
    others = mask_questions(DEVELOPMENT, max(len(asked) // 4, 2))
    heats = [by_diffedit(model, one, evidence=True, edges=True).heat for one in others]
    threshold = row("", heats, heats, [one.truth for one in others]).best_threshold
    theirs = [
        overlap((by_diffedit(model, one, evidence=True, edges=True).heat > threshold).float(), truth)
        for one, truth in zip(asked, truths, strict=True)
    ]
    ours = [overlap(one.mask, truth) for one, truth in zip(found, truths, strict=True)]
    interval = paired_difference([np.array(ours)], [np.array(theirs)])
    return threshold, {"diffedit_tuned_iou": round(100 * float(np.mean(theirs)), 2),
                       **interval.figures("attention_minus_diffedit_tuned")}  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'IoU, %':34s} scenes    all  alone  among   best threshold"]
    for one in rows:
        fits = f"{one.all:6.1f} {one.alone:6.1f} {one.among:6.1f}"
        lines.append(f"{one.name:34s} {one.scenes:6d} {fits}  {one.best:5.1f} at {one.best_threshold:g}")
    return "\n".join(lines)


def examples(asked: Sequence[MaskQuestion], found: dict[str, list[Found]]) -> list[tuple[Tensor, str]]:
    """Pictures and captions, a row for each question."""
    cells = []
    for i, one in enumerate(asked[:SHOWN]):
        attention, diffedit, difference = (found[name][i] for name in (ATTENTION, DIFFEDIT, DIFFERENCE))
        pictures = (one.image, attention.heat, attention.mask, one.truth, diffedit.mask, difference.mask)
        names = (one.source, "attention", "its mask", "the object", "DiffEdit's mask", f"as {one.target}")
        cells += [(picture[0].expand(3, -1, -1), name) for picture, name in zip(pictures, names, strict=True)]
    return cells


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, f"{QUICK} scenes")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED, help="of the scenes; settings were chosen on those of 2")
    parser.add_argument("--only", choices=[method.name for method in METHODS], help="one method, of all scenes")
    args = parser.parse_args(argv)
    harness = Harness.of(args)
    model = load_checkpoint(MODEL).to(harness.device)
    asked = mask_questions(args.seed, QUICK if args.quick else args.scenes)
    methods = {method.name: method for method in METHODS}
    if args.only is not None:
        measure(model, asked, [methods[args.only]._replace(part=1)])
        return

    found, rows = measure(model, asked, METHODS)
    rows += ceilings(asked)
    fits = {one.name: one.all for one in rows}
    costs = {
        name: round(cost(model, asked[:9], methods[name], harness.clock), 1) for name in (ATTENTION, DIFFERENCE)
    }
    figures = {
        "attention_iou": fits[ATTENTION],
        "diffedit_iou": fits[DIFFEDIT],
        "difference_iou": fits[DIFFERENCE],
        "attention_cost_steps": costs[ATTENTION],
        "difference_cost_steps": costs[DIFFERENCE],
    }
    threshold, tuned = tuned_difference(model, asked, found[ATTENTION])
    figures |= tuned
    print(f"{len(asked)} scenes of seed {args.seed}, {model.config.name}\n{table(rows)}")
    harness.write(
        "masks", figures, model=model.config.name, seed=args.seed, scenes=len(asked), tuned_threshold=threshold,
        table=[asdict(one) for one in rows],
    )  # fmt: skip
    grid(examples(asked, found), columns=6, enlarge=2).save(harness.output / "masks.png")


if __name__ == "__main__":
    main()
