"""What a comparison with bounds leaves behind: numbers for machines, tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .intervals import Interval
from .report import write


class EvidenceRow(NamedTuple):
    """What was measured of one model, with the sampler and guidance that were best for it.

    questions: which ones; steps: 0 for what was not sampled; figures: percentages
    """

    model: str
    questions: str
    steps: int
    sampler: str
    guidance: float
    figures: dict[str, float]


def write_evidence(
    output: Path, differences: Mapping[str, Interval], rows: Sequence[EvidenceRow], settings: Mapping[str, Any]
) -> None:
    """Write evidence.json and evidence.md; a file that was there stays whole until the new one is."""
    figures = {figure: value for name, one in differences.items() for figure, value in one.figures(name).items()}
    record = {"figures": figures, "settings": settings, "table": [row._asdict() for row in rows]}
    write(output / "evidence.md", evidence_table(differences, rows, settings).encode())
    write(output / "evidence.json", (json.dumps(record, indent=2) + "\n").encode())


def evidence_table(
    differences: Mapping[str, Interval], rows: Sequence[EvidenceRow], settings: Mapping[str, Any]
) -> str:
    """Figures and rows as Markdown."""
    lines = [
        "# LazyDiffusion beside its baselines, each at its best",
        "",
        f"{settings['scenes']} scenes of seed {settings['test_seed']} for each question; sampler and guidance of each "
        f"row were chosen on scenes of seed {settings['development_seed']}. Bounds hold with 95 %, by a bootstrap "
        "that draws questions, with all that is judged of each.",
        "",
        "| Difference, percentage points | | from | to | questions |",
        "|---|--:|--:|--:|--:|",
        *(f"| `{name}` | {one.mean:+.1f} | {one.low:+.1f} | {one.high:+.1f} | {one.cases} |"
          for name, one in differences.items()),
    ]  # fmt: skip
    for questions in dict.fromkeys(row.questions for row in rows):
        some = [row for row in rows if row.questions == questions]
        columns = list(some[0].figures)
        lines += [
            "",
            f"| Questions {questions} | steps | sampler | guidance | {' | '.join(columns).replace('_', ' ')} |",
            f"|---|--:|---|--:|{'--:|' * len(columns)}",
        ]
        for row in some:
            way = f"{row.steps} | {row.sampler} | {row.guidance:g}" if row.steps else "– | – | –"
            lines.append(f"| {row.model} | {way} | {' | '.join(f'{row.figures[name]:.1f} %' for name in columns)} |")
    return "\n".join(lines) + "\n"
