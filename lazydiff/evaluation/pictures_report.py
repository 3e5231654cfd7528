"""What an evaluation on pictures leaves behind: numbers, the paper's Table 1 with them, and a page of pictures."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.pictures import grid
from .report import write

METHODS = ("LazyDiffusion", "RegenerateImage", "RegenerateCrop")
# CLIP score and FID of the paper's Table 1: its own models at 1024 px, 10 000 pictures of OpenImages.
PUBLISHED = {"LazyDiffusion": (0.19, 7.70), "RegenerateImage": (0.19, 7.38), "RegenerateCrop": (0.19, 9.35)}
EXAMPLES = 8  # pictures on the page
SHOWN = 192  # px per side of each
LETTERS = 30  # that fit below one


class Measured(NamedTuple):
    """The figures of one method; None for one that was not computed.

    clip, clip_hole: mean CLIPScore of the hole's caption with the whole picture, with the square around the hole
    seam_ratio: jump across the mask's edge, relative to the real pictures'
    changed_outside: colour values outside the mask that are not bit-identical, over all pictures
    seconds: of one edit, everything in it but reading the picture; the median
    """

    clip: float | None
    fid: float | None
    clip_hole: float | None
    seam_ratio: float | None
    changed_outside: int
    seconds: float


class PageRow(NamedTuple):
    """A row of the page, all [·, h, w] in 0…1: the hole, the real picture, and each method's."""

    caption: str
    hole: Tensor
    truth: Tensor
    answers: Mapping[str, Tensor]


def write_pictures_report(
    output: Path, rows: Mapping[str, Measured], settings: Mapping[str, Any], examples: Sequence[PageRow]
) -> None:
    """Write evaluation.json, evaluation.md and pictures.png; a file that was there stays whole until the new one is."""
    page = io.BytesIO()
    enlarge = max(SHOWN // examples[0].truth.shape[-1], 1)
    grid(page_cells(examples), 2 + len(rows), enlarge).save(page, "PNG")
    record = {"figures": {name: row._asdict() for name, row in rows.items()}, "settings": settings}
    output.mkdir(parents=True, exist_ok=True)
    write(output / "pictures.png", page.getvalue())
    write(output / "evaluation.md", table_1(rows, settings).encode())
    write(output / "evaluation.json", (json.dumps(record, indent=2) + "\n").encode())


def table_1(rows: Mapping[str, Measured], settings: Mapping[str, Any]) -> str:
    """The figures as Markdown, in the layout of the paper's Table 1, with the paper's own numbers beside them."""
    count, sampling = settings["pictures"], settings["sampling"][METHODS[0]]
    lines = [
        f"# {settings['checkpoints'][METHODS[0]]} on {count} pictures",
        "",
        f"Pictures of {settings['size']} px, one hole in each, seed {settings['seed']}. {sampling['sampler']} sampler, "
        f"{sampling['steps']} steps, guidance {sampling['guidance']:g}, {settings['blend']} blending. A dash: not "
        "computed, for want of a checkpoint or of the metric's weights.",
        "",
        "| Method | CLIP score ↑ | FID ↓ | paper: CLIP score | paper: FID | CLIP score, around the hole ↑ | Seam ratio "
        "| Values changed outside the mask | Seconds per edit |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in METHODS:
        row, (clip, fid) = rows.get(name), PUBLISHED[name]
        cells = [
            told(row and row.clip, ".3f"), told(row and row.fid, ".2f"), f"*{clip:.2f}*", f"*{fid:.2f}*",
            told(row and row.clip_hole, ".3f"), told(row and row.seam_ratio, ".2f"),
            told(row and row.changed_outside, "d"), told(row and row.seconds, ".3f"),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "*Paper*: Table 1 of arXiv 2404.12382, its own models, trained on 220 million pictures, on 10 000 pictures of "
        "OpenImages; a FID of other pictures, or of fewer, is no comparison with it. "
        f"CLIP score: mean cosine of the embeddings of the hole's caption and of the whole picture "
        f"({settings['clip'] or 'no CLIP given'}); the paper does not say which crop or which CLIP it took. "
        f"FID: whole pictures against the real ones ({settings['inception'] or 'no Inception given'}). "
        "Seam ratio: jump across the mask's edge relative to the real pictures'. Seconds: median of whole edits, one "
        "at a time "
        f"({settings['device']}).",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def told(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)


def page_cells(examples: Sequence[PageRow]) -> list[tuple[Tensor, str]]:
    """A row for each: the canvas with its hole hatched, each method's picture, the truth."""
    cells = []
    for caption, hole, truth, answers in examples:
        place = torch.arange(hole.shape[-1]) + torch.arange(hole.shape[-2])[:, None]
        hatched = torch.where(place % 8 < 4, 80 / 255, 160 / 255)
        words = "\n".join(textwrap.wrap(caption, LETTERS, max_lines=3, placeholder=" …"))
        cells.append((torch.where(hole > 0.5, hatched, truth), words))
        cells += [(picture, name) for name, picture in answers.items()]
        cells.append((truth, "truth"))
    return cells
