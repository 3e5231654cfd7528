"""What the pictures of the shipped model lose when its encoder sees distant tokens in groups; nothing is trained.

    python benchmarks/encoder_quality.py --output DIR [--windows 2 3] [--scenes 100] [--device cpu] [--quick]

Prints a table and writes `encoder-quality.json`. The encoder as trained and with each size of window answers the same
held-out questions from the same noise, and is judged by the rules of `lazydiff evaluate`. `psnr` is the likeness of its
pictures to those of the encoder as trained, in dB, in the hole before blending; nine in ten have at least `psnr_10`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, machine  # noqa: E402
from lazydiff.evaluation.baselines import psnr  # noqa: E402
from lazydiff.evaluation.evaluate import PERCENTAGES, SEED, blended, painted, percentage  # noqa: E402
from lazydiff.evaluation.judge import Judge  # noqa: E402
from lazydiff.evaluation.questions import object_questions  # noqa: E402
from lazydiff.model.checkpoint import SHIPPED, load_checkpoint  # noqa: E402
from lazydiff.model.lazydiffusion import LazyDiffusion  # noqa: E402

EXACT = "as trained"


def compare(model: LazyDiffusion, windows: Sequence[int], scenes: int, judge: Judge) -> dict[str, dict[str, float]]:
    """The figures in percent, and the likeness in dB, of the encoder as trained and with each size of window."""
    asked = object_questions(SEED, scenes)
    rows: dict[str, dict[str, float]] = {}
    exact: Mapping[str, Tensor] = {}
    for name, window in {EXACT: 0, **{f"window {size}": size for size in windows}}.items():
        model.encoder.window = window
        made = {kind: painted(model, questions, model.config.sampling) for kind, questions in asked.items()}
        exact = exact or made
        likeness = np.concatenate([psnr(asked[kind], made[kind], exact[kind]) for kind in asked])
        pictures = {kind: blended(asked[kind], made[kind]) for kind in asked}
        rows[name] = {figure: round(percentage(judge, figure, asked, pictures), 1) for figure in PERCENTAGES}
        rows[name] |= {
            "psnr": round(float(likeness.mean()), 2),
            "psnr_10": round(float(np.percentile(likeness, 10)), 2),
        }
        print(table({name: rows[name]}, header=name == EXACT), flush=True)
    model.encoder.window = 0
    return rows


def table(rows: Mapping[str, Mapping[str, float]], header: bool = True) -> str:
    names = next(iter(rows.values()))
    lines = [" " * 12 + "  ".join(names)] if header else []
    lines += [
        f"{row:12}" + "  ".join(f"{value:{len(name)}.1f}" for name, value in figures.items())
        for row, figures in rows.items()
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "few scenes, and a less trained judge: to see that it runs")
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 3], help="tokens per side of a window")
    parser.add_argument("--scenes", type=int, default=100, help="questions of each kind")
    args = parser.parse_args(argv)
    scenes = min(args.scenes, 4) if args.quick else args.scenes
    where = machine(args.device)
    model = load_checkpoint(SHIPPED).to(args.device)
    judge = Judge(SEED, scenes=400 if args.quick else 1000)
    rows = compare(model, args.windows, scenes, judge)
    better = [figure for figure in PERCENTAGES if figure != "swapped_colour"]  # the more the better
    lost = [rows[EXACT][figure] - row[figure] for row in rows.values() for figure in better]
    report = {
        "figures": {"largest_loss": round(max(lost), 1)},
        "model": model.config.name,
        "fingerprint": model.fingerprint,
        "scenes": scenes,
        "seed": SEED,
        "machine": where,
        "torch": torch.__version__,
        "table": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "encoder-quality.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
