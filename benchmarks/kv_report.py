"""What `kv_context.py` has measured: rows, figures, tables and plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from lazydiff.cache.kv_cache import KVSettings

from .kv_shapes import FLUX, PIXART

GOALS = {"first_ratio": 3.6, "next_ratio": 5.8}  # of 20 steps
KEPT = {False: "", True: ", text kept"}


class Step(NamedTuple):
    """One call of the model."""

    shape: str
    ring: int
    text_kept: bool
    tokens: int  # computed, of image and text
    dense_ms: float
    replayed_ms: float
    ratio: float
    limit: float  # by multiply-adds
    share: float  # of the limit that is reached


class Sampling(NamedTuple):
    """A whole sampling."""

    shape: str
    steps: int
    mode: str  # how keys and values are kept: recorded, or at anchors
    text_kept: bool
    dense_s: float
    first_s: float
    first_ratio: float
    next_s: float  # with what the one before has kept
    next_ratio: float

    @property
    def usual(self) -> bool:
        """Whether the settings are those that a user finds."""
        return self.text_kept == KVSettings().text and self.mode == KVSettings().mode


class Memory(NamedTuple):
    """One anchor's keys and values."""

    shape: str
    precision: str
    measured_mb: float
    formula_mb: float
    ratio: float


class Limit(NamedTuple):
    """A sampling whose anchors do not all fit."""

    shape: str
    limit_mb: int
    most_mb: float  # after any step
    anchors_made: int
    anchors_left: int


# Heading and format of each field, in their order.
HEADS: dict[type[Any], Mapping[str, str]] = {
    Step: {
        "one call": "{}", "ring": "{}", "text kept": "{}", "tokens computed": "{}", "dense, ms": "{:.0f}",
        "replayed, ms": "{:.0f}", "faster": "{:.2f}×", "by multiply-adds": "{:.2f}×", "share reached": "{:.0%}",
    },
    Sampling: {
        "whole sampling": "{}", "steps": "{}", "keys": "{}", "text kept": "{}", "dense, s": "{:.1f}",
        "first edit, s": "{:.1f}",
        "first edit": "{:.2f}×", "next variation, s": "{:.1f}", "next variation": "{:.2f}×",
    },
    Memory: {
        "one anchor": "{}", "precision": "{}", "measured, MB": "{:.1f}", "by the formula, MB": "{:.1f}",
        "measured / formula": "{:.4f}",
    },
    Limit: {
        "memory limit": "{}", "limit, MB": "{}", "most kept, MB": "{:.1f}", "anchors made": "{}",
        "anchors still kept": "{}",
    },
}  # fmt: skip


@dataclass
class Results:
    notes: list[str]  # on what they were measured
    steps: list[Step] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """Of calls, those that compute the hole without a ring; of samplings, those at the settings that a user finds;
        of memory, what is farthest from the formula."""

        def ratio(shape: str, kept: bool) -> float:
            return next(row.ratio for row in self.steps if (row.shape, row.ring, row.text_kept) == (shape, 0, kept))

        usual = {(row.shape, row.steps): row for row in self.samplings if row.usual}
        return {
            "pixart_step_ratio_at_10_percent": ratio(PIXART.name, False),
            "flux_step_ratio_at_10_percent": ratio(FLUX.name, False),
            "flux_step_ratio_text_cached": ratio(FLUX.name, True),
            **{f"end_to_end_{steps}_steps": usual[FLUX.name, steps].first_ratio for steps in (20, 8, 4)},
            "pixart_end_to_end_20_steps": usual[PIXART.name, 20].first_ratio,
            "next_variation_20_steps": min(row.next_ratio for (_, steps), row in usual.items() if steps == 20),
            "cache_over_formula": max((row.ratio for row in self.memory), key=lambda ratio: abs(ratio - 1)),
        }

    @property
    def markdown(self) -> str:
        parts = ["\n".join(f"- {note}" for note in self.notes)]
        parts += [table(rows, HEADS[type(rows[0])]) for rows in (self.steps, self.samplings, self.memory, self.limits)]
        return "\n\n".join(parts) + "\n"

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        rows = {name: value for name, value in vars(self).items() if name != "notes"}
        return {name: [row._asdict() for row in value] for name, value in rows.items()}

    @property
    def plot(self) -> Figure:
        """How many times faster than dense: calls beside their limit, and whole samplings beside their goals."""
        figure = Figure(figsize=(11, 6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        places = range(len(self.steps))
        left.barh(places, [row.limit for row in self.steps], color="0.85", label="limit by multiply-adds")
        left.barh(places, [row.ratio for row in self.steps], height=0.5, label="measured")
        for place, row in zip(places, self.steps, strict=True):
            left.annotate(f" {row.ratio:.1f}×, {row.share:.0%}", (max(row.limit, row.ratio), place), va="center")
        left.set_yticks(places, [f"{row.shape}, ring {row.ring}{KEPT[row.text_kept]}" for row in self.steps])
        left.set_xlabel("one call: times faster than dense, and share of the limit")
        for i, (name, goal) in enumerate(GOALS.items()):
            words = {"first_ratio": "first edit", "next_ratio": "next variation"}[name]
            tops = [place + 0.4 * i for place in range(len(self.samplings))]
            bars = right.barh(tops, [getattr(row, name) for row in self.samplings], height=0.38, label=words)
            right.bar_label(bars, fmt=" %.1f×")
            right.axvline(goal, linestyle="--", color=f"C{i}", label=f"goal {goal:g}× at 20 steps")
        middles = [place + 0.2 for place in range(len(self.samplings))]
        names = [f"{row.shape}, {row.steps} steps{KEPT[row.text_kept]}" for row in self.samplings]
        keys = ["" if row.mode == KVSettings().mode else f", {row.mode}" for row in self.samplings]
        right.set_yticks(middles, [name + key for name, key in zip(names, keys, strict=True)])
        right.set_xlabel("whole samplings: times faster")
        for axes in (left, right):
            axes.invert_yaxis()
            axes.margins(x=0.25)
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
        figure.suptitle("\n".join(fill(note, 120) for note in self.notes), fontsize=8)
        return figure


def table(rows: Sequence[Any], heads: Mapping[str, str]) -> str:
    """Rows in Markdown. heads: heading and format of each field"""
    lines = [list(heads), ["---"] + ["--:"] * (len(heads) - 1)]
    lines += [[form.format(cell) for form, cell in zip(heads.values(), row, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
