"""Gates against fewer steps of equal multiply-adds: distance to the exact sampling, and time of an edit.

    python -m benchmarks.gates --output DIR [--device cpu] [--scenes 80] [--quick]

Prints a table and writes `gates.png` and `gates.json`. LazyDiT's protocol: the laboratory's model answers the same
questions with fewer steps, and with all of them but some attentions and MLPs skipped. Which ones, decide gates that
were trained for the share that is skipped, or scenes of another seed: by the damage that whole steps do together; by
the library's calibration, which takes the steps that change least, in all of these scenes or, as in a node, in one; and
by the same measure module by module. Controls are drawn at random, modules or whole steps of the odd ones, and all
modules of odd steps. Pictures are compared, in grey levels inside the hole, with what the sampler makes of the same
seeds in EXACT steps. Multiply-adds are those of the decoder. An edit is a whole one, from picture to picture, at a mask
of 30 %; on a CPU, times are processor time of one thread. Gates that do not ship are trained first and kept in DIR,
where the same command finds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lazydiff.cache.module_skip import (
    MODULES,
    SUFFIX,
    Gates,
    SkipCalibrator,
    SkipTable,
    load_gates,
    lowest,
)
from lazydiff.core.masks import to_grid
from lazydiff.evaluation.evaluate import asked_tensors, painted
from lazydiff.evaluation.evidence import DEVELOPMENT, TEST
from lazydiff.evaluation.intervals import Interval, paired_ratio
from lazydiff.evaluation.laboratory import GATES, SMALL
from lazydiff.evaluation.questions import ObjectQuestion, object_questions
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.config import NetworkConfig, Sampling
from lazydiff.model.layers import explicit_attention
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.sample import SampleSettings
from lazydiff.sampling.schedules import flow_sigmas
from lazydiff.training.gates import GateTraining, train_gates

from .harness import Harness, arguments

EXACT = 40  # steps
FEWEST = 5
TRAINING = GateTraining(3e-3, 3e-3, steps=500, scenes=16)
QUICK_UPDATES = 4
CHOSEN_ON, DRAWS = 20, 5  # scenes; controls of each kind for each share, and scenes that are calibrated on alone
BOX = slice(16, 72), slice(24, 72)  # 42 of 144 tokens

PLAIN, MEASURED, WHOLE, SINGLE = "steps", "steps of least damage", "calibrated skips", "calibrated, module by module"
FIRST = "calibrated on one scene"
TRAINED, RANDOM, RANDOM_STEPS = "trained gates", "modules at random", "whole steps at random"
ODD = "all of odd steps"
FIGURES = {MEASURED: "gates_beat", WHOLE: "calibrated_over", FIRST: "calibrated_on_one_over",
           SINGLE: "module_by_module_over", TRAINED: "trained_over",
           RANDOM: "random_over", RANDOM_STEPS: "random_steps_over", ODD: "all_odd_over"}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way to sample; tables: of modules that are skipped, [steps, modules] bool; several draws of what is left to
    chance."""

    kind: str
    sampling: Sampling
    tables: Sequence[Tensor]

    @property
    def ratio(self) -> float:
        """Share of the modules that are skipped."""
        return float(self.tables[0].double().mean())

    @property
    def name(self) -> str:
        return f"{self.sampling.steps} steps" if self.kind == PLAIN else f"{self.kind}, {100 * self.ratio:.0f} %"


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    ratio: float  # of the modules that are skipped
    work: float  # share of the multiply-adds of all steps
    milliseconds: float  # of an edit
    distance: float  # mean absolute difference to the exact sampling inside the hole, grey levels of 255
    over_equal_work: Interval | None  # the same over that of fewer steps of equal multiply-adds; None: it is those


class Questions:
    """Questions, and how far their answers are from those of EXACT steps."""

    def __init__(self, model: LazyDiffusion, sampling: Sampling, seed: int, scenes: int):
        self.model, self.asked = model, object_questions(seed, scenes)["sibling"]
        self.exact = painted(model, self.asked, replace(sampling, steps=EXACT))
        self.holes = asked_tensors(self.asked, model.device)[1]

    def distances(self, sampling: Sampling, table: Tensor) -> np.ndarray:
        """[S] mean absolute difference inside the hole, grey levels."""
        away = (painted(self.model, self.asked, sampling, gates=skips(sampling, table)) - self.exact).abs()
        return (255 * (away * self.holes).sum((1, 2, 3)) / (3 * self.holes.sum((1, 2, 3)))).cpu().numpy()

    @property
    def tokens(self) -> list[int]:
        """In each hole."""
        grid = to_grid(self.holes, self.model.config.network.token)
        return [int(count) for count in grid.sum((1, 2, 3))]


def ways(model: LazyDiffusion, gates: Mapping[float, Gates]) -> list[Way]:
    """All steps first, then fewer, then those that skip; gates: by the share of modules that they were trained for"""
    some = next(iter(gates.values()))
    sampling, (steps, modules) = Sampling(**some.settings["sampling"]), some.scores.shape
    development = Questions(model, sampling, DEVELOPMENT, CHOSEN_ON)
    rng = np.random.default_rng(DEVELOPMENT)

    def calibrated(asked: Sequence[ObjectQuestion]) -> SkipCalibrator:
        watch = SkipCalibrator(some.levels, modules)
        painted(model, asked, sampling, gates=watch)
        return watch

    of_all = calibrated(development.asked)
    of_one = [calibrated([question]) for question in development.asked[:DRAWS]]
    fewer = range(steps, FEWEST - 1, -1)
    found = [Way(PLAIN, replace(sampling, steps=n), [torch.zeros(n, modules, dtype=torch.bool)]) for n in fewer]
    odd = (torch.arange(steps) % 2 == 1)[:, None].expand(steps, modules)
    for ratio, trained in gates.items():
        tables = {
            MEASURED: [least_damage(development, sampling, odd, round(ratio * steps))],
            WHOLE: [torch.tensor(of_all.table_of(ratio).table)],
            FIRST: [torch.tensor(one.table_of(ratio).table) for one in of_one],
            SINGLE: [lowest(of_all.skippable, ratio)],
            TRAINED: [torch.tensor(trained.fixed(ratio).table)],
            RANDOM: [at_random(odd, ratio, rng, whole_steps=False) for _ in range(DRAWS)],
            RANDOM_STEPS: [at_random(odd, ratio, rng, whole_steps=True) for _ in range(DRAWS)],
        }
        found += [Way(kind, sampling, each) for kind, each in tables.items()]
    return [*found, Way(ODD, sampling, [odd])]


def least_damage(development: Questions, sampling: Sampling, odd: Tensor, count: int) -> Tensor:
    """The table that skips all modules of so many odd steps: of all choices that which leaves the pictures nearest to
    the exact ones."""
    tables = []
    for steps in combinations(range(1, sampling.steps, 2), count):
        tables.append(torch.zeros_like(odd))
        tables[-1][list(steps)] = True
    return min(tables, key=lambda table: float(development.distances(sampling, table).mean()))


def at_random(allowed: Tensor, ratio: float, rng: np.random.Generator, whole_steps: bool) -> Tensor:
    """A table that skips the `ratio` of all modules; allowed: [steps, modules] bool, those that may be skipped."""
    shape = (len(allowed), 1) if whole_steps else allowed.shape
    luck = torch.from_numpy(rng.random(shape)).expand(allowed.shape)
    return lowest(luck.masked_fill(~allowed, torch.inf), ratio)


def trained_gates(folder: Path, updates: int) -> dict[float, Gates]:
    """Gates for about three and four tenths of the modules, by the penalties of two trainings."""
    path = folder / f"penalty-{TRAINING.attention_penalty:g}-{updates}-updates{SUFFIX}"
    kept = load_gates(GATES)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = load_checkpoint(SMALL, attention=explicit_attention).requires_grad_(False)
        train_gates(model, Sampling(**kept.settings["sampling"]), replace(TRAINING, steps=updates), path)
    return {0.3: load_gates(path), 0.4: kept}


def measure(model: LazyDiffusion, tried: Sequence[Way], scenes: int, harness: Harness) -> list[Row]:
    """One row for each way. scenes: questions"""
    questions, network = Questions(model, tried[0].sampling, TEST, scenes), model.config.network
    everything = work_of(tried[0].tables[0], network, questions.tokens)
    plain: dict[int, np.ndarray] = {}
    rows = []
    for way, milliseconds in zip(tried, edit_times(model, tried, harness), strict=True):
        found = np.mean([questions.distances(way.sampling, table) for table in way.tables], axis=0)
        work = float(np.mean([work_of(table, network, questions.tokens) for table in way.tables])) / everything
        over = None
        if way.kind == PLAIN:
            plain[way.sampling.steps] = found
        else:
            over = paired_ratio(found, of_equal_work(tried[0].sampling.steps * work, plain))
        rows.append(Row(way.name, way.kind, way.ratio, work, milliseconds, float(found.mean()), over))
        print(line(rows[-1]), flush=True)
    return rows


def skips(sampling: Sampling, table: Tensor) -> SkipTable:
    return SkipTable(flow_sigmas(sampling.steps, sampling.shift), table)


def work_of(table: Tensor, network: NetworkConfig, tokens: Sequence[int]) -> float:
    """Multiply-adds of samplings of holes of so many tokens; table: of the modules that are skipped."""
    skipped = [int(table[:, kind::MODULES].sum()) for kind in range(MODULES)]
    return sum(
        len(table) * network.macs(n, network.text_length)
        - sum(count * macs for count, macs in zip(skipped, network.module_macs(n), strict=True))
        for n in tokens
    )


def of_equal_work(steps: float, plain: Mapping[int, np.ndarray]) -> np.ndarray:
    """Distances [S] of so many steps; between whole numbers, linear in 1 / steps, as the errors of Euler's method are.

    plain: distances of whole numbers of steps
    """
    more, fewer = math.ceil(steps), math.floor(steps)
    if more == fewer:
        return plain[more]
    along = (1 / steps - 1 / more) / (1 / fewer - 1 / more)
    return (1 - along) * plain[more] + along * plain[fewer]


def edit_times(model: LazyDiffusion, tried: Sequence[Way], harness: Harness) -> list[float]:
    """Milliseconds of a whole edit each way, one row, the ways in turn."""
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(harness.device)
    mask = torch.zeros(1, 1, 96, 96, device=harness.device)
    mask[0, 0][BOX] = 1
    settings = [SampleSettings(way.sampling, skip=skips(way.sampling, way.tables[0])) for way in tried]
    return harness.medians([partial(edit, model, image, mask, "a red tree", settings=each) for each in settings])


def line(row: Row) -> str:
    over = "" if row.over_equal_work is None else "{:9.2f} ({:.2f} to {:.2f})".format(*row.over_equal_work[:3])
    return f"{row.name:26} {row.ratio:8.1%} {row.work:9.1%} {row.milliseconds:9.1f} {row.distance:9.2f} {over}"


HEAD = f"{'':26} {'skipped':>8} {'work':>9} {'ms/edit':>9} {'distance':>9} over steps of equal work"


def plot(rows: Sequence[Row], title: str) -> Figure:
    """Distance against multiply-adds, and against the time of an edit."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, kind in enumerate((PLAIN, *FIGURES)):
        some = [row for row in rows if row.kind == kind]
        style = {"marker": "osDP^vx+*"[number], "color": {PLAIN: "0.4", ODD: "k"}.get(kind, f"C{number}")}
        distances = [row.distance for row in some]
        left.plot([100 * row.work for row in some], distances, label="fewer steps" if kind == PLAIN else kind, **style)
        right.plot([row.milliseconds for row in some], distances, **style)
    left.set_xlabel("multiply-adds, % of all steps'")
    left.set_ylabel(f"distance to {EXACT} steps, grey levels")
    right.set_xlabel("ms per edit")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=9)
    return figure


def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """At a half all modules of odd steps are skipped, and nothing is left to choose."""
    found: dict[str, float] = {}
    for row in rows:
        if row.over_equal_work is not None:
            for kind in (MEASURED, ODD) if row.kind == ODD else (row.kind,):
                found |= row.over_equal_work.figures(f"{FIGURES[kind]}_equal_macs_{100 * row.ratio:.0f}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "10 scenes, gates that have hardly been trained", repeat=7)
    parser.add_argument("--scenes", type=int, default=80, help="questions (%(default)s)")
    args = parser.parse_args(argv)
    harness, scenes = Harness.of(args), 10 if args.quick else args.scenes
    gates = trained_gates(harness.output, QUICK_UPDATES if args.quick else TRAINING.steps)
    model = load_checkpoint(SMALL).to(harness.device)
    print(f"{harness.conditions}\n{HEAD}")
    rows = measure(model, ways(model, gates), scenes, harness)
    full, chosen = rows[0], next(row for row in rows if row.kind == MEASURED and round(row.ratio, 6) == 0.4)
    figures = {**figures_of(rows), "time_saved": round(1 - chosen.milliseconds / full.milliseconds, 4)}
    setting = f"{SMALL.stem}, {EXACT} steps against 10 and fewer, {scenes} scenes of seed {TEST}"
    own = {f"{100 * ratio:.0f} %": float(torch.tensor(one.fixed().table).double().mean())
           for ratio, one in gates.items()}  # fmt: skip
    harness.write(
        "gates", figures, plot(rows, f"{setting}\n{harness.conditions}"), setting=setting, scenes=scenes, seed=TEST,
        chosen_on={"scenes": CHOSEN_ON, "seed": DEVELOPMENT}, draws=DRAWS, skipped_by_trained_gates=own,
        table=[{**vars(row), "over_equal_work": row.over_equal_work and row.over_equal_work._asdict()} for row in rows],
    )  # fmt: skip


if __name__ == "__main__":
    main()
