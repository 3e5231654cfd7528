"""What a comparison with the baselines leaves behind: numbers for machines, a table and a plot for people."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .report import Line, write

COLUMNS = {
    "psnr": "PSNR, dB",
    "psnr_90": "9 in 10 above",
    "sibling_colour": "Sibling colour",
    "sibling_shape": "Sibling shape",
    "caption_blank": "Caption, blank",
    "caption_against_siblings": "Caption, among siblings",
    "removal": "Removal",
    "seam_ratio": "Seam",
}
LINES: dict[str, Line] = {
    "psnr_20_steps": Line("Likeness to the dense result in the hole, as by default, 20 steps", "dB", least=35),
    "psnr_8_steps": Line("The same, 8 steps", "dB", least=32),
    "psnr_4_steps": Line("The same, 4 steps", "dB", least=34),
    "psnr_other_visible_noise": Line("Likeness of the dense result with other noise on the visible tokens", "dB"),
    "psnr_auto": Line("Likeness to the dense result in the hole, automatic anchors", "dB", least=28),
    "sibling_colour_loss": Line("Sibling colour that it loses against dense, at worst", "points", most=3),
    "caption_loss": Line("Caption match that it loses, mean of both kinds, at worst", "points", most=3),
    "lazy_sibling_colour": Line("Sibling colour of LazyDiffusion", "%"),
    "dense_sibling_colour": Line("Sibling colour of RegenerateImage, every token at every step", "%"),
    "crop_sibling_colour": Line("Sibling colour of RegenerateCrop, which cannot see the siblings", "%"),
}


class Row(NamedTuple):
    """What was measured of one setting.

    scenes: of each kind of question
    dense_steps: steps of a sampling that computed every token, on average
    cost: of the decoder, as a share of computing every token at every step
    figures: percentages, the seam's ratio, and for RegenerateImage the PSNR against its dense result in the hole before
        blending: the mean over pictures, and what nine in ten of them exceed
    """

    name: str
    scenes: int
    dense_steps: float
    cost: float
    figures: dict[str, float]


def write_baselines(
    output: Path, figures: Mapping[str, float], settings: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """Write baselines.json, baselines.md and baselines.png; a file that was there stays whole until the new one is."""
    record = {"figures": figures, "settings": settings, "table": [row._asdict() for row in rows]}
    picture = plot(rows)
    write(output / "baselines.png", picture)
    write(output / "baselines.md", baselines_table(figures, settings, rows).encode())
    write(output / "baselines.json", (json.dumps(record, indent=2) + "\n").encode())


def baselines_table(figures: Mapping[str, float], settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Figures and rows as Markdown."""
    sampling, scenes = settings["sampling"], [row.scenes for row in rows]
    many, few = max(scenes), min(scenes)
    lines = [
        "# LazyDiffusion beside its baselines",
        "",
        f"{many} held-out scenes for each of five questions (rows marked *: {few}), seed {settings['seed']}. "
        f"{sampling['sampler']} sampler, {sampling['steps']} steps, guidance {sampling['guidance']:g}, "
        f"{settings['blend']} blending. All siblings lie outside the square that the crop sees. PSNR: in the hole, "
        "before blending, against RegenerateImage's own result with every token at every step, as many steps and the "
        "same noise; 100 dB stands for equal. Work: of the decoder, in multiply-adds, against every token at every "
        "step. Pictures are judged by rules; the standard error of a percentage is at most "
        f"{50 / many**0.5:.1f} points (*: {50 / few**0.5:.1f}), that of a difference between rows is less: they share "
        "questions and seeds. "
        "“every step” is the dense result again, on the questions of the rows marked *. “recorded” is the default: "
        "visible tokens are recorded before the sampling, at as many noise levels as the number of steps asks for.",
        "",
        "| What is asked | Result | Target | Met? |",
        "|---|--:|--:|:-:|",
    ]
    for figure, line in LINES.items():
        judgement = "– | –"
        if line.least is not None or line.most is not None:
            judgement = f"{line.target} {line.unit} | {'yes' if line.met(figures[figure]) else 'no'}"
        lines.append(f"| {line.asks} (`{figure}`) | {figures[figure]:.1f} {line.unit} | {judgement} |")
    lines += ["", f"| | Dense steps | Work | {' | '.join(COLUMNS.values())} |", f"|---|{'--:|' * (len(COLUMNS) + 2)}"]
    for row in rows:
        name = row.name if row.scenes == many else f"{row.name} *"
        cells = [f"{row.figures[figure]:.{digits(figure)}f}" if figure in row.figures else "–" for figure in COLUMNS]
        lines.append(f"| {name} | {row.dense_steps:.1f} | {row.cost:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def digits(figure: str) -> int:
    return 2 if figure == "seam_ratio" else 1


def plot(rows: Sequence[Row]) -> bytes:
    """Likeness and match against work, as a PNG."""
    from matplotlib.figure import Figure

    named = {row.name: row for row in rows}
    styles = {
        "recorded before the sampling": (["recorded, 1 level", "recorded", "recorded, 3 levels"], "s-"),
        "anchors, evenly spaced": (["1 anchor", "2 anchors", "4 anchors", "8 anchors"], "o-"),
        "anchors, automatic": (["automatic"], "*"),
    }
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    titles = {
        "psnr": "PSNR in the hole against the dense result, dB", "sibling_colour": "sibling colour, %",
        "caption": "shape and colour of the caption, %",
    }  # fmt: skip
    for axes, (measure, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for label, (names, style) in styles.items():
            some = [named[name] for name in names]
            axes.plot([100 * row.cost for row in some], [value(row, measure) for row in some], style, ms=7, label=label)
        if measure != "psnr":
            for name, style in {"dense": "-", "LazyDiffusion": "--", "RegenerateCrop": ":"}.items():
                axes.axhline(value(named[name], measure), ls=style, lw=1, color="0.4", label=name)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="work, % of every token at all of 20 steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def value(row: Row, measure: str) -> float:
    if measure == "caption":
        return (row.figures["caption_blank"] + row.figures["caption_against_siblings"]) / 2
    return row.figures[measure]
