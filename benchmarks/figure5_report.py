"""Tables and plot of `figure5.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WAYS = {"next edit": "o-", "next variation": "^-", "first edit": "s:",
        "RegenerateImage": "x--", "RegenerateCrop": "d--"}  # fmt: skip
STEP = {"lazy": "lazy step", "RegenerateImage": "image step", "RegenerateCrop": "crop step"}
STAGES = ("open encode", "open decode", "lazy encode", "context", "lazy step", "lazy decode", "blend", "crop and scale",
          "encode", "image step", "decode", "crop encode", "crop step", "crop decode")  # fmt: skip
SHOWN = (20, 4)  # steps


def by_canvas(rows: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    for canvas, some in groupby(rows, key=lambda row: row.canvas):
        yield canvas, list(some)


def tables(rows: Sequence[Any], memory: Mapping[str, float]) -> str:
    lines = []
    for canvas, some in by_canvas(rows):
        lines += [f"\n{canvas} px, ms of each stage", f"{'mask %':16}" + "".join(f"{row.percent:10g}" for row in some)]
        for stage in STAGES:
            lines.append(f"{stage:16}" + "".join(f"{row.stages[stage]:10.1f}" for row in some))
        lines += [f"\n{canvas} px, seconds of an edit, and RegenerateImage's as a multiple",
                  f"{'mask %':>6} {'steps':>5}" + "".join(f"{name:>22}" for name in WAYS)]  # fmt: skip
        for row in some:
            for steps in next(iter(row.edits.values())):
                full = row.edits["RegenerateImage"][steps]
                times = (row.edits[name][steps] for name in WAYS)
                cells = (f"{time / 1000:13.2f} {full / time:7.2f}x" for time in times)
                lines.append(f"{row.percent:6g} {steps:5d}" + "".join(cells))
    lines += ["\nMB", *(f"{name:28} {value:10.1f}" for name, value in memory.items())]
    return "\n".join(lines)


def plot(rows: Sequence[Any], title: str) -> Figure:
    """A row of four for each canvas: a step and an edit against the mask, speed-up against steps, share of stages."""
    canvases = list(by_canvas(rows))
    figure = Figure(figsize=(19, 5 * len(canvases) + 0.5), layout="constrained")
    axes = figure.subplots(len(canvases), 4, squeeze=False)
    for (canvas, some), (step, edit, speed, share) in zip(canvases, axes, strict=True):
        lines_against_mask(step, some, {name: [row.stages[s] / 1000 for row in some] for name, s in STEP.items()})
        step.set_title(f"{canvas} px: a guided step", fontsize=10)
        edits = {name: [row.edits[name][SHOWN[0]] / 1000 for row in some] for name in WAYS}
        lines_against_mask(edit, some, edits)
        edit.set_title(f"{canvas} px: pixels to pixels, {SHOWN[0]} steps", fontsize=10)
        ten = next((row for row in some if row.percent == 10), some[0])
        speed_against_steps(speed, ten)
        shares(share, ten)
    figure.suptitle(title, fontsize=9)
    return figure


def lines_against_mask(axes: Axes, rows: Sequence[Any], lines: Mapping[str, Sequence[float]]) -> None:
    percents = [row.percent for row in rows]
    for name, seconds in lines.items():
        axes.plot(percents, seconds, WAYS.get(name, "o-"), label=name)
    axes.set(xscale="log", yscale="log", xlabel="mask, % of the canvas", ylabel="seconds")
    axes.set_xticks(percents, [f"{percent:g}" for percent in percents], minor=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def speed_against_steps(axes: Axes, row: Any) -> None:
    for name in ("next variation", "next edit", "chained edit", "first edit"):
        full = row.edits["RegenerateImage, next variation" if name == "next variation" else "RegenerateImage"]
        ratios = {steps: full[steps] / time for steps, time in row.edits[name].items()}
        axes.plot(list(ratios), list(ratios.values()), WAYS.get(name, "v-."), label=name)
    axes.set(xscale="log", xlabel="steps", ylabel="RegenerateImage's time as a multiple", ylim=(0, None))
    axes.set_xticks(list(ratios), list(map(str, ratios)), minor=False)
    axes.set_title(f"{row.canvas} px, mask {row.percent:g} %: times faster", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def shares(axes: Axes, row: Any) -> None:
    """Bars of the next edit's stages at two numbers of steps."""
    for position, steps in enumerate(SHOWN):
        left = 0.0
        total = row.edits["next edit"][steps]
        for i, stage in enumerate(("lazy encode", "context", "lazy step", "lazy decode", "blend")):
            width = 100 * row.stages[stage] * (steps if stage == "lazy step" else 1) / total
            label = None if position else stage.replace("lazy step", "steps")
            axes.barh(position, width, left=left, color=f"C{i}", label=label)
            if width > 4:
                axes.text(left + width / 2, position, f"{width:.0f} %", ha="center", va="center", fontsize=8)
            left += width
    axes.set_yticks(range(len(SHOWN)), [f"{steps} steps" for steps in SHOWN])
    axes.set(xlabel="% of the next edit", xlim=(0, 101), ylim=(-0.6, 2.2))
    axes.set_title(f"{row.canvas} px, mask {row.percent:g} %: where the time goes", fontsize=10)
    axes.legend(fontsize=8, ncols=3, loc="upper center")
