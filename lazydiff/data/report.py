"""What became of the pictures that were prepared, and why some of them were refused."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..core.files import whole_file
from .entities import Refusal

SUMMARY, LIST = "report.json", "refused.csv"


class Refused(NamedTuple):
    """A picture that was left out. Each field is a column of refused.csv."""

    key: str
    reason: str
    detail: str


@dataclass
class Report:
    """Counts of one shard, or of many.

    pictures: that were looked at; cut: captions that were too long; size: bytes of the shard
    """

    pictures: int = 0
    samples: int = 0
    holes: int = 0
    cut: int = 0
    size: int = 0
    refused: list[Refused] = field(default_factory=list)

    @classmethod
    def total(cls, reports: Sequence[Report]) -> Report:
        names = ("pictures", "samples", "holes", "cut", "size")
        sums = {name: sum(getattr(report, name) for report in reports) for name in names}
        return cls(**sums, refused=[one for report in reports for one in report.refused])

    @classmethod
    def read(cls, path: Path) -> Report | None:
        """None for one that is not there, or damaged."""
        try:
            values = json.loads(path.read_bytes())
            return cls(**{**values, "refused": [Refused(*one) for one in values["refused"]]})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, path: Path) -> None:
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(asdict(self)), "utf-8")

    def refuse(self, key: str, refusal: Refusal) -> None:
        self.refused.append(Refused(key, refusal.reason, refusal.detail))

    @property
    def reasons(self) -> dict[str, int]:
        """How many pictures were refused for each reason, the most frequent first."""
        return dict(Counter(one.reason for one in self.refused).most_common())

    def summarise(self, folder: Path) -> None:
        """Write report.json, the counts, and refused.csv, a line for each picture that was refused."""
        values = {name: value for name, value in asdict(self).items() if name != "refused"}
        with whole_file(folder / SUMMARY) as unfinished:
            unfinished.write_text(json.dumps({**values, "refused": self.reasons}, indent=2) + "\n", "utf-8")
        with whole_file(folder / LIST) as unfinished:
            with unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                csv.writer(file).writerows([Refused._fields, *self.refused])

    def table(self) -> str:
        """The counts in a few lines, as the command prints them."""
        counts = {
            "pictures": self.pictures, "samples": self.samples, "holes": self.holes, "captions cut": self.cut,
            "refused": len(self.refused), **{f"  {reason}": count for reason, count in self.reasons.items()},
        }  # fmt: skip
        width = max(map(len, counts))
        return "\n".join(f"{name:{width}}  {count:>9,}" for name, count in counts.items())
