"""log.csv of a training: one row per step, cut back to the last state when it goes on."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ..core.files import whole_file

COLUMNS = ("step", "loss", "gradient_norm", "learning_rate")


class Log:
    """The rows since the last state, and the file that they go into then.

    writes: whether this process is the one that does
    """

    def __init__(self, path: Path, writes: bool):
        self.path, self.writes = path, writes
        self.rows: list[tuple[int, Tensor, Tensor, float]] = []
        header = ",".join(COLUMNS) + "\n"
        if not path.exists():
            if writes:
                with whole_file(path) as unfinished:  # other processes look at it at the same time
                    unfinished.write_text(header)
        elif not path.read_text("utf-8", errors="replace").startswith(header):
            raise ValueError(f"{path} is no log of a training: move it away, or choose another --output")

    def add(self, step: int, loss: Tensor, norm: Tensor, rate: float) -> None:
        self.rows.append((step, loss, norm, rate))

    def recent(self, steps: int) -> float:
        """Mean loss of the last steps."""
        rows = self.rows[-steps:]
        return sum(float(loss) for _, loss, _, _ in rows) / max(len(rows), 1)

    def flush(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Write the rows and give out each, its step first.

        Errors: ValueError for a loss that is not a number: nothing that comes after it is worth keeping.
        """
        rows = [(step, float(loss), float(norm), rate) for step, loss, norm, rate in self.rows]
        self.rows.clear()
        if failed := [step for step, loss, _, _ in rows if not math.isfinite(loss)]:
            raise ValueError(f"the loss is not a number from step {failed[0]} on: choose a lower learning rate")
        if self.writes:
            with self.path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(
                    (step, f"{loss:.5f}", f"{norm:.4f}", f"{rate:.3e}") for step, loss, norm, rate in rows
                )
        return ((row[0], dict(zip(COLUMNS[1:], row[1:], strict=True))) for row in rows)

    def cut(self, start: int) -> None:
        """Keep the rows of the steps before `start`."""
        if not self.writes:
            return
        lines = self.path.read_text().splitlines(keepends=True)
        with whole_file(self.path) as unfinished:
            unfinished.write_text("".join(lines[: 1 + start]))
