"""All that is claimed of the papers' methods, measured one after the other, and their figures in one file.

    python -m benchmarks.evidence --output DIR [--device cpu] [--quick]
        [--longer FILE] [--iddpm FILE] [--portraits FILE] [--held-out DIR]

Each part has a folder of its own in DIR:

    models           LazyDiffusion beside the paper's baselines: python -m lazydiff evaluate --evidence --dtype bfloat16
    masks            attention masks against DiffEdit's:         python -m benchmarks.masks
    gates            gates against fewer steps at equal work:    python -m benchmarks.gates
    figure5          whole edits by the paper's protocol:        python -m benchmarks.figure5
    published-masks  masks by the published settings:            python -m benchmarks.published_masks
                     (with --portraits, the model of benchmarks.portraits)
    held-out         combinations left out of the training:      python -m benchmarks.held_out
                     (with --held-out, the folder of its trainings)

A part that is complete, for the same weights, is not measured again: the same command goes on where it was stopped (the
models in the middle, too). `evidence.json` is written at the end. It takes hours, with --quick some minutes; a quick
run shows that everything works, and its figures say nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lazydiff.cli import main as lazydiff
from lazydiff.cli.evaluation import FURTHER
from lazydiff.core.files import whole_file
from lazydiff.evaluation.laboratory import GATES, SMALL

from . import figure5, gates, held_out, masks, published_masks
from .harness import Harness, arguments

MODELS = "models"
KEPT = "parts.json"


class Part(NamedTuple):
    """A benchmark, how the names of those figures of it begin that count, and the weights that it measures."""

    main: Callable[[Sequence[str]], None]
    prefix: str
    weights: Sequence[Path] = ()


PARTS = {
    "masks": Part(masks.main, "attention_minus_diffedit_tuned", (masks.MODEL,)),
    "gates": Part(gates.main, "gates_beat_equal_macs", (SMALL, GATES)),
    "figure5": Part(figure5.main, "figure5_shared_vae"),
}


def by_published_settings(weights: Path) -> Part:
    """weights: of benchmarks.portraits"""

    def main(words: Sequence[str]) -> None:
        published_masks.main([*words, "--weights", str(weights)])

    return Part(main, "instdiffedit", (weights,))


def of_combinations(folder: Path) -> Part:
    """folder: of the trainings of benchmarks.held_out"""

    def main(words: Sequence[str]) -> None:
        held_out.main([*words, "--trainings", str(folder)])

    return Part(main, "held_out", held_out.weights_in(folder))


def measured(name: str, part: Part, harness: Harness) -> dict[str, float]:
    """A part's figures, from an earlier run if that is complete and was of the same weights.

    Errors: ValueError for a part that has no such figure.
    """
    path = harness.output / KEPT
    kept: dict[str, Any] = read(path) if path.exists() else {}
    measures = {"quick": harness.quick, "device": harness.device, "weights": [*map(digest, part.weights)]}
    if kept.get(name, {}).get("measures") != measures:
        folder = harness.output / name
        part.main(["--output", str(folder), "--device", harness.device, *["--quick"] * harness.quick])
        found = {figure: value for figure, value in read(folder / f"{name}.json")["figures"].items()
                 if figure.startswith(part.prefix)}  # fmt: skip
        if not found:
            raise ValueError(f"benchmarks.{name} has measured no {part.prefix}")
        kept[name] = {"measures": measures, "figures": found}
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(kept, indent=2), "utf-8")
    figures: dict[str, float] = kept[name]["figures"]
    return figures


def compared(harness: Harness, further: Sequence[str]) -> Mapping[str, Any]:
    """What the comparison of models has written; it keeps its own account of what it knows.

    further: words of the command that name further models
    """
    folder = harness.output / MODELS
    command = ["evaluate", "--evidence", "--dtype", "bfloat16", "--output", str(folder), "--device", harness.device]
    if status := lazydiff([*command, *["--quick"] * harness.quick, *further]):
        raise SystemExit(status)  # it has said why
    return read(folder / "evidence.json")


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "every part as its own --quick")
    for name, what in FURTHER.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)
    parser.add_argument("--portraits", type=Path, metavar="FILE", help="weights of benchmarks.portraits")
    parser.add_argument("--held-out", type=Path, metavar="DIR", help="the --output of benchmarks.held_out")
    args = parser.parse_args(argv)
    harness, parts = Harness.of(args), dict(PARTS)
    if args.portraits:
        parts["published-masks"] = by_published_settings(args.portraits)
    if args.held_out:
        parts["held-out"] = of_combinations(args.held_out)
    harness.output.mkdir(parents=True, exist_ok=True)
    further = [word for name in FURTHER if (path := getattr(args, name)) for word in (f"--{name}", str(path))]
    models = compared(harness, further)
    figures = dict(models["figures"])
    for name, part in parts.items():
        figures |= measured(name, part, harness)
    harness.write("evidence", figures, settings=models["settings"], table=models["table"])


if __name__ == "__main__":
    main()
