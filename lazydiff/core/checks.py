"""Ranges of settings, and what lies outside them told in the user's words."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The numbers that a setting may be, from `low` to `high`.

    whole: integers alone; above: without `low` itself
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False

    def has(self, value: Any) -> bool:
        kind = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        number: Any = value
        return bool((self.low < number if self.above else self.low <= number) and number <= self.high)  # NaN fails both

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        between = ("above", "and at most") if self.above else ("from", "to")
        return f"{kind} {between[0]} {self.low:g} {between[1]} {self.high:g}"


def check_ranges(settings: Any, ranges: Mapping[str, Range]) -> None:
    """Errors: ValueError for the first attribute of `settings` that is not in its range."""
    for name, allowed in ranges.items():
        if not allowed.has(value := getattr(settings, name)):
            raise ValueError(f"{name} is {shortened(value)}: choose {allowed}")


def check_flags(settings: Any, *names: str) -> None:
    """Errors: ValueError for the first attribute that is neither true nor false."""
    for name in names:
        if not isinstance(value := getattr(settings, name), bool):
            raise ValueError(f"{name} is {shortened(value)}: choose true or false")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Errors: ValueError for a value that is none of the names to choose from."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {shortened(value)}: choose {', '.join(choices)}")


def shortened(value: Any, most: int = 40) -> str:
    """A value as a message shows it."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= most else text[: most - 1] + "…"
