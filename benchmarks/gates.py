"""Gates against simply taking fewer steps: quality, distance to the exact sampling, and time of an edit.

    python -m benchmarks.gates --output DIR [--device cpu] [--quick]

Prints a table and writes `gates.png` and `gates.json`. The shipped model answers the evaluation's questions with all of
the steps that its gates were trained for, with gates, and with fewer steps; the comparison is LazyDiT's own, between
gates and the fewest steps that take at least as long. Quality is the mean of the evaluation's four main percentages.
They are blunt: the model passes most of them with two steps. So the pictures are also compared, in grey levels inside
the hole, with what the sampler makes of the same seeds in EXACT steps, which both gates and fewer steps approximate.
An edit is a whole one, from picture to picture, at a mask of 30 %. On a CPU, times are processor time of one thread.
`full_size_time_saved` is of the decoder alone, with PixArt-α's architecture, 1024 px, 30 %, at the same ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from lazydiff.cache.module_skip import MODULES, SHIPPED_GATES, SkipCalibrator, SkipPolicy, SkipTable, load_gates
from lazydiff.evaluation.evaluate import COMPARED, MAIN, SEED, answer, percentage
from lazydiff.evaluation.judge import Judge
from lazydiff.evaluation.questions import ObjectQuestion, object_questions
from lazydiff.model.checkpoint import SHIPPED, load_checkpoint
from lazydiff.model.config import PIXART_1024, NetworkConfig, Sampling
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.sample import SampleSettings

from .harness import Harness, arguments
from .subjects import decoder_call, first_tokens, tokens_of

EXACT = 40  # steps
RATIOS = (0.3, 0.4, 0.5)
CHOSEN = "trained gates, 40 %"  # whose figures are the report's
BOX = slice(16, 72), slice(24, 72)  # 42 of 144 tokens
LAYERS = 2  # of the full-size decoder: they are alike


@dataclass(frozen=True)
class Way:
    """One way to sample."""

    name: str
    sampling: Sampling
    skip: SkipPolicy | None = None


@dataclass(frozen=True)
class Row:
    name: str
    steps: int
    ratio: float  # of the modules that were not computed
    milliseconds: float  # of an edit
    quality: float  # percent
    distance: float  # mean absolute difference to the exact sampling inside the hole, grey levels of 255


def ways(model: LazyDiffusion, scenes: int) -> list[Way]:
    """All steps first, then fewer, then gates."""
    trained = load_gates(SHIPPED_GATES)
    full = Sampling(**trained.settings["sampling"])
    calibrator = SkipCalibrator(trained.levels, MODULES * model.config.network.decoder_depth)
    # On scenes of another seed than the questions'.
    answer(model, object_questions(SEED + 1, max(scenes // 5, 10))["sibling"], full, gates=calibrator)
    fewer = [Way(f"{steps} steps", replace(full, steps=steps)) for steps in range(full.steps, 4, -1)]
    gated = [Way("trained gates, row by row", full, trained)]
    for ratio in RATIOS:
        gated.append(Way(f"trained gates, {ratio:.0%}".replace("%", " %"), full, trained.fixed(ratio)))
        gated.append(Way(f"calibrated skips, {ratio:.0%}".replace("%", " %"), full, calibrator.table_of(ratio)))
    return [*fewer, *gated]


def measure(model: LazyDiffusion, scenes: int, harness: Harness) -> list[Row]:
    tried = ways(model, scenes)
    asked = {kind: questions for kind, questions in object_questions(SEED, scenes).items() if kind in COMPARED}
    judge = Judge(SEED, scenes=400)
    exact = answer(model, asked["sibling"], replace(tried[0].sampling, steps=EXACT))
    milliseconds = edit_times(model, tried, harness)
    rows = []
    for way, time_taken in zip(tried, milliseconds, strict=True):
        if way.skip is not None:
            way.skip.reset()
        answers = {kind: answer(model, questions, way.sampling, gates=way.skip) for kind, questions in asked.items()}
        quality = float(np.mean([percentage(judge, figure, asked, answers) for figure in MAIN]))
        ratio = 0.0 if way.skip is None else way.skip.ratio
        distance = difference(answers["sibling"], exact, asked["sibling"])
        rows.append(Row(way.name, way.sampling.steps, ratio, time_taken, quality, distance))
        print(line(rows[-1]), flush=True)
    return rows


def difference(pictures: np.ndarray, exact: np.ndarray, questions: Sequence[ObjectQuestion]) -> float:
    holes = np.stack([question.mask for question in questions])
    return float(np.abs(pictures.astype(np.float32) - exact.astype(np.float32))[holes].mean())


def edit_times(model: LazyDiffusion, tried: Sequence[Way], harness: Harness) -> list[float]:
    """Milliseconds of a whole edit each way, one row, the ways in turn."""
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(harness.device)
    mask = torch.zeros(1, 1, 96, 96, device=harness.device)
    mask[0, 0][BOX] = 1
    settings = [SampleSettings(way.sampling, skip=way.skip) for way in tried]
    return harness.medians([partial(edit, model, image, mask, "a red tree", settings=each) for each in settings])


@torch.inference_mode()
def full_size_saving(ratio: float, config: NetworkConfig, harness: Harness) -> float:
    """Share of the decoder's time that a ratio saves: of the time between all modules computed and none."""
    decoder = LazyDecoder(config, device=harness.device).eval()
    call = decoder_call(decoder, first_tokens(config, [tokens_of(config, 30)]))
    table = torch.tensor([[False], [True]]).expand(2, MODULES * config.decoder_depth)
    levels = (1.0, 0.5, 0.0)
    session = SkipTable(levels, table).session("", levels)
    calls = [lambda level=level: call(gate=session.call(level, "a")) for level in levels[:-1]]
    everything, nothing = harness.medians(calls)
    return ratio * (1 - nothing / everything)


def rival(row: Row, rows: Sequence[Row]) -> Row:
    """The fewest steps that take at least as long."""
    plain = [each for each in rows if each.ratio == 0 and each.milliseconds >= row.milliseconds]
    return min(plain, key=lambda each: each.steps, default=rows[0])


def line(row: Row) -> str:
    return f"{row.name:26} {row.ratio:8.1%} {row.milliseconds:9.1f} {row.quality:9.2f} {row.distance:9.2f}"


HEAD = f"{'':26} {'skipped':>8} {'ms/edit':>9} {'quality':>9} {'distance':>9}"


def plot(rows: Sequence[Row], title: str) -> Figure:
    """Quality and distance against the time of an edit."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    kinds = {"steps": ("o-", "0.4", "fewer steps"), "trained": ("s-", "C0", "trained gates"),
             "calibrated": ("^-", "C1", "calibrated skips (not LazyDiT)")}  # fmt: skip
    for axes, value in zip(figure.subplots(1, 2), ("quality", "distance"), strict=True):
        for kind, (style, colour, label) in kinds.items():
            chosen = sorted((row for row in rows if kind in row.name), key=lambda row: row.milliseconds)
            points = [row.milliseconds for row in chosen], [getattr(row, value) for row in chosen]
            axes.plot(*points, style, color=colour, label=label)
        axes.set_xlabel("ms per edit")
        axes.grid(alpha=0.3)
    quality, distance = figure.axes
    quality.set_ylabel("mean of the main figures, %")
    distance.set_ylabel(f"distance to {EXACT} steps, grey levels")
    quality.set_ylim(80, 101)
    distance.legend()
    figure.suptitle(title, fontsize=9)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "20 scenes for each question instead of 100", repeat=15)
    parser.add_argument("--scenes", type=int, default=100, help="for each question (%(default)s)")
    args = parser.parse_args(argv)
    harness, scenes = Harness.of(args), 20 if args.quick else args.scenes
    model = load_checkpoint(SHIPPED).to(harness.device)
    print(f"{harness.conditions}\n{HEAD}")
    rows = measure(model, scenes, harness)
    full, chosen = rows[0], next(row for row in rows if row.name == CHOSEN)
    other = rival(chosen, rows)
    saved = full_size_saving(chosen.ratio, replace(PIXART_1024, decoder_depth=LAYERS), harness)
    figures = {
        "skip_ratio": chosen.ratio,
        "quality_loss": full.quality - chosen.quality,
        "time_saved": 1 - chosen.milliseconds / full.milliseconds,
        "full_size_time_saved": saved,
        "gain_over_fewer_steps": chosen.quality - other.quality,
        "distance": chosen.distance,
        "distance_of_fewer_steps": other.distance,
        "fewer_steps": other.steps,
    }
    setting = f"{SHIPPED.stem}, {full.steps} steps, {scenes} scenes for each question"
    harness.write(
        "gates", {name: round(value, 4) for name, value in figures.items()},
        plot(rows, f"{setting}\n{harness.conditions}"), chosen=CHOSEN, setting=setting,
        table=[vars(row) for row in rows],
    )  # fmt: skip


if __name__ == "__main__":
    main()
