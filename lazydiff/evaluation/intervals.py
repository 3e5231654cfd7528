"""How sure a measured difference is, when both sides answered the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

DRAWS = 10_000
CERTAINTY = 0.95


class Interval(NamedTuple):
    """A mean, or a ratio of means, and the bounds within which it lies with CERTAINTY; cases: questions."""

    mean: float
    low: float
    high: float
    cases: int

    def figures(self, name: str) -> dict[str, float]:
        rounded = {name: round(self.mean, 2), f"{name}_low": round(self.low, 2), f"{name}_high": round(self.high, 2)}
        return {**rounded, f"{name}_cases": self.cases}


def paired_difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """How much better the first answers than the second, in percentage points, the mean over all judgements.

    first, second: for each kind of questions, whether each was obeyed, bool [S], or how well, 0…1; [J, S] where each is
        judged in J ways. Both sides answer the same questions
    The bounds are those of a percentile bootstrap that draws questions of each kind, with all judgements of a question
    (Efron 1979).
    Errors: ValueError for sides that were not asked the same.
    """
    if [one.shape for one in first] != [other.shape for other in second] or not first:
        raise ValueError("both sides answer the same questions")
    if min(one.shape[-1] for one in first) < 2:
        raise ValueError("bounds need at least two questions of each kind")
    gains = [100 * np.atleast_2d(one.astype(float) - other) for one, other in zip(first, second, strict=True)]
    judgements = sum(map(len, gains))

    def mean(*gains: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.sum([gain.mean(axis) for gain in gains], axis=0) / judgements

    return bootstrapped([gain.sum(0) for gain in gains], mean, seed, paired=False)


def paired_ratio(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
    """The mean of the first over that of the second; both [S], of the same questions.

    The bounds are those of a percentile bootstrap that draws questions.
    Errors: ValueError for sides that were not asked the same.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError("both sides answer the same questions, at least two")

    def ratio(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        return first.mean(axis) / second.mean(axis)

    return bootstrapped([first, second], ratio, seed, paired=True)


def bootstrapped(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], seed: int, *, paired: bool
) -> Interval:
    """A statistic of samples with the bounds of a percentile bootstrap; paired: they are of the same questions"""
    bounds = bootstrap(
        samples, statistic, n_resamples=DRAWS, vectorized=True, paired=paired, confidence_level=CERTAINTY,
        method="percentile", random_state=seed,
    ).confidence_interval  # fmt: skip
    cases = len(samples[0]) if paired else sum(map(len, samples))
    return Interval(float(statistic(*samples)), float(bounds.low), float(bounds.high), cases)
