"""How sure a measured difference is, when both sides answered the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
CERTAINTY = 0.95


class Interval(NamedTuple):
    """A mean in percentage points, and the bounds within which it lies with CERTAINTY; cases: questions."""

    mean: float
    low: float
    high: float
    cases: int

    def figures(self, name: str) -> dict[str, float]:
        return {name: round(self.mean, 2), f"{name}_low": round(self.low, 2), f"{name}_high": round(self.high, 2)}


def paired_difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """How much better the first answers than the second, in percentage points, the mean over kinds of questions.

    first, second: for each kind, whether each question was obeyed, bool [S], or how well, 0…1; the same questions on
        both sides
    The bounds are those of a percentile bootstrap that draws questions of each kind (Efron 1979).
    Errors: ValueError for sides that were not asked the same.
    """
    if [len(one) for one in first] != [len(other) for other in second] or not all(map(len, first)):
        raise ValueError("both sides answer the same questions, at least one of each kind")
    rng = np.random.default_rng(seed)
    drawn, mean = np.zeros(DRAWS), 0.0
    for one, other in zip(first, second, strict=True):
        gain = 100 * (one.astype(float) - other.astype(float))
        mean += gain.mean() / len(first)
        drawn += gain[rng.integers(len(gain), size=(DRAWS, len(gain)))].mean(1) / len(first)
    low, high = np.quantile(drawn, [(1 - CERTAINTY) / 2, (1 + CERTAINTY) / 2])
    return Interval(float(mean), float(low), float(high), sum(map(len, first)))
