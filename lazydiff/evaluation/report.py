"""What an evaluation leaves behind: numbers for machines, a table for people, and pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.files import whole_file
from ..core.pictures import grid
from .questions import Question

EXAMPLES = 3  # of each kind of question in the grid


class Line(NamedTuple):
    """What a figure asks, its unit, and the range it should lie in."""

    asks: str
    unit: str
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def aims(self) -> bool:
        return self.least is not None or self.most is not None

    @property
    def target(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"at least {self.least:g}" if self.most is None else f"at most {self.most:g}"


LINES: dict[str, Line] = {
    "sibling_colour": Line("Colour of the siblings, by “another one”, “another tree” or “a tree”", "%", least=85),
    "sibling_shape": Line("Shape of the siblings, by the same captions", "%", least=85),
    "swapped_colour": Line("Control: siblings recoloured, yet the first colour", "%", most=15),
    "swapped_follows_other": Line("Siblings recoloured: their new colour, by “another one”", "%", least=85),
    "swapped_shape": Line("Shape of the siblings, by “another one” alone", "%", least=85),
    "caption_blank": Line("Shape and colour of the caption, on a blank canvas", "%", least=85),
    "caption_against_siblings": Line("Shape and colour of the caption, among siblings unlike it", "%", least=85),
    "removal": Line("“background”: no object left", "%", least=80),
    "seam_ratio": Line("Jump across the mask's edge, after blending, relative to untouched renders", "", most=1.3),
    "roughness_ratio": Line("Mean absolute Laplacian in the hole, relative to untouched renders", "", 0.7, 1.3),
    "fit_psnr": Line("PSNR in the hole against the asked thing's own render where it fits best", "dB"),
    "item_psnr": Line("The same where that render shows the thing", "dB"),
    "stray_share": Line("Pixels of the hole that are neither the thing nor ground", "%"),
    "steps20_minus_steps50": Line("Mean of colour, shape, caption and removal at 20 steps minus at 50", "points", -3),
}


def write_report(
    output: Path,
    figures: Mapping[str, float],
    settings: Mapping[str, Any],
    counts: Mapping[str, int],
    asked: Mapping[str, Sequence[Question]],
    answers: Mapping[str, np.ndarray],
    lines: Mapping[str, Line] | None = None,
) -> None:
    """Write evaluation.json, evaluation.md and grid.png; a file that was there stays whole until the new one is."""
    record = {"figures": figures, "settings": settings, "counts": counts}
    picture = io.BytesIO()
    grid(cells(asked, answers), columns=3 * EXAMPLES).save(picture, "PNG")
    write(output / "grid.png", picture.getvalue())
    write(output / "evaluation.md", table(figures, settings, counts, lines or LINES).encode())
    write(output / "evaluation.json", (json.dumps(record, indent=2) + "\n").encode())


def write(path: Path, content: bytes) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)


def table(
    figures: Mapping[str, float], settings: Mapping[str, Any], counts: Mapping[str, int], lines: Mapping[str, Line]
) -> str:
    """The figures as Markdown."""
    sampling, scenes = settings["sampling"], counts["ordinary"]
    rows = [
        f"# Measured quality of {settings['checkpoint']}",
        "",
        f"{scenes} held-out scenes for each question{told_of(counts)}, seed "
        f"{settings['seed']}. {sampling['sampler']} sampler, {sampling['steps']} steps, guidance "
        f"{sampling['guidance']:g}, {settings['blend']} blending. Pictures are judged by rules, not by eye. The "
        "ceiling is the share of real renders that the same rule accepts. The standard error of a percentage is at "
        f"most {50 / scenes**0.5:.1f} points.",
        "",
        "| What is asked | Result | Ceiling | Share of ceiling | Target | Met? |",
        "|---|--:|--:|--:|--:|:-:|",
    ]
    for figure, line in lines.items():
        if figure not in figures:
            continue
        value, ceiling = figures[figure], figures.get(f"{figure}_ceiling")
        row = [
            f"{line.asks} (`{figure}`)",
            f"{value:.1f} %" if line.unit == "%" else f"{value:.2f} {line.unit}".strip(),
            "–" if ceiling is None else f"{ceiling:.1f} %",
            f"{100 * value / ceiling:.0f} %" if ceiling and line.least is not None else "–",
            f"{line.target} {line.unit}".strip() if line.aims else "–",
            ("yes" if line.met(value) else "no") if line.aims else "–",
        ]
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows) + "\n"


def told_of(counts: Mapping[str, int]) -> str:
    """Of what there were fewer."""
    names = {"steps20_and_50": "for the comparison of steps", "fitted": "for the fit"}
    fewer = [f"{counts[name]} {purpose}" for name, purpose in names.items() if name in counts]
    return f" ({', '.join(fewer)})" if fewer else ""


def cells(asked: Mapping[str, Sequence[Question]], answers: Mapping[str, np.ndarray]) -> list[tuple[Tensor, str]]:
    """Triples of the canvas with its hole, the model's answer and the truth; a row for each kind of question."""
    made = []
    for kind, questions in asked.items():
        for i in range(EXAMPLES):
            question, picture = questions[i % len(questions)], answers[kind][i % len(questions)]
            # A blank canvas is grey itself.
            hatched = np.where(np.indices(question.mask.shape).sum(0)[..., None] % 8 < 4, np.uint8(80), np.uint8(160))
            canvas = np.where(question.mask[..., None], hatched, question.image)
            triple = ((canvas, kind.replace("_", " ")), (picture, question.caption), (question.image, "truth"))
            made += [(torch.from_numpy(image).permute(2, 0, 1) / 255, caption) for image, caption in triple]
    return made
