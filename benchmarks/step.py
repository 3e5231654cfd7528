"""Time of one decoder call against the size of the mask, with PixArt-α's architecture at 1024 px and random weights.

    python -m benchmarks.step --output DIR [--device cpu] [--layers 2] [--repeat 5] [--quick]

Prints a table and writes `step.png` and `step.json`. All mask sizes are measured in turn, in one process, on one
decoder; 100 % is the same network on the whole canvas, which is what stock PixArt computes. On a CPU, times are
processor time of one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure

from lazydiff.model.config import PIXART_1024, NetworkConfig
from lazydiff.model.decoder import LazyDecoder

from .harness import Harness, arguments, finish
from .subjects import decoder_call, first_tokens, tokens_of

PERCENT = (1, 2.5, 5, 10, 25, 50, 100)


@dataclass(frozen=True)
class Row:
    percent: float  # of the canvas
    tokens: int
    milliseconds: float
    speedup: float  # time of all tokens / time of these
    speedup_in_theory: float  # the same of multiply-adds


@torch.inference_mode()
def measure(config: NetworkConfig, harness: Harness, batch: int) -> list[Row]:
    """One row per mask size."""
    torch.manual_seed(0)
    decoder = LazyDecoder(config, device=harness.device, dtype=harness.dtype).eval()
    counts = [tokens_of(config, percent) for percent in PERCENT]
    times = harness.medians([decoder_call(decoder, first_tokens(config, [n] * batch)) for n in counts])
    macs = [config.macs(n, config.text_length) for n in counts]
    return [
        Row(percent, n, milliseconds, times[-1] / milliseconds, macs[-1] / mac)
        for percent, n, milliseconds, mac in zip(PERCENT, counts, times, macs, strict=True)
    ]


def table(rows: Sequence[Row]) -> str:
    lines = ["mask %   tokens   ms/step   speed-up   in theory"]
    for row in rows:
        ratios = f"{row.speedup:9.2f}x {row.speedup_in_theory:10.2f}x"
        lines.append(f"{row.percent:6g} {row.tokens:8d} {row.milliseconds:9.1f} {ratios}")
    return "\n".join(lines)


def plot(rows: Sequence[Row], title: str) -> Figure:
    """Time per step against mask size, log-log, beside the multiply-adds scaled to the time of all tokens."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="mask, % of the canvas", ylabel="ms per decoder call")
    percents, full = [row.percent for row in rows], rows[-1].milliseconds
    theory = [full / row.speedup_in_theory for row in rows]
    axes.plot(percents, theory, "--", color="0.5", label="multiply-adds, scaled")
    axes.plot(percents, [row.milliseconds for row in rows], "o-", label="measured")
    for row in rows:
        point = (row.percent, row.milliseconds)
        axes.annotate(f"{row.speedup:.1f}×", point, xytext=(-5, 5), textcoords="offset points", ha="right")
    axes.margins(x=0.12)
    finish(axes, percents, title)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "one layer", repeat=5)
    parser.add_argument("--layers", type=int, default=2, help="decoder blocks; they are alike, so time goes with them")
    args = parser.parse_args(argv)
    harness, layers = Harness.of(args), 1 if args.quick else args.layers
    batch = 1 if harness.on_cpu else 2  # on an accelerator, the paper's setting: half precision and a guided pair
    rows = measure(replace(PIXART_1024, decoder_depth=layers), harness, batch)

    setting = f"{layers} of PixArt-α XL/2's {PIXART_1024.decoder_depth} layers, 1024 px, batch {batch}"
    print(f"{setting}; {harness.conditions}\n{table(rows)}")
    speedup = {row.percent: row.speedup for row in rows}
    figures = {"ratio_at_10_percent": speedup[10], "ratio_at_5_percent": speedup[5]}
    scale = "" if layers == PIXART_1024.decoder_depth else "\nall layers are alike: times go with their number"
    picture = plot(rows, f"{setting}\n{harness.conditions}{scale}")
    harness.write(
        "step", figures, picture, setting=setting, dtype=str(harness.dtype), table=[vars(row) for row in rows]
    )


if __name__ == "__main__":
    main()
