"""Time of one encoder call against the size of the canvas, exact and with windows; PixArt-α's width, random weights.

    python benchmarks/encoder.py --output DIR [--device cpu] [--repeat 3] [--quick]

Prints a table and writes `encoder.png` and `encoder.json`. One layer is timed, and taken as often as the encoder has
layers: they are alike, save that the last one computes less. On a CPU the exact layer is timed on two small numbers of
queries that attend to all tokens of the canvas, and what its queries cost is scaled to all of them: at 4096 px the
whole would take minutes. Times there are processor time of one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lazydiff.networks.windows import Windows  # noqa: E402

from benchmarks.common import arguments, machine, write  # noqa: E402
from lazydiff.core.tokens import HoleTokens  # noqa: E402
from lazydiff.model.config import PIXART_1024, PRESETS, NetworkConfig  # noqa: E402
from lazydiff.model.context_encoder import EncoderBlock  # noqa: E402
from lazydiff.model.layers import sdpa  # noqa: E402

SIDES = (1024, 2048, 4096)  # px
WINDOW = PRESETS["pixart-4096"].encoder_window
QUERIES = (512, 2048)  # of the exact layer, where not all are timed
HOLE = 0.1  # of the canvas, in the decoder step beside which the encoder is put


@dataclass(frozen=True)
class Row:
    canvas: int  # px
    tokens: int
    exact_seconds: float  # of all layers
    window_seconds: float
    speedup: float
    exact_macs: int
    window_macs: int
    speedup_in_theory: float
    exact_steps: float  # decoder calls on a hole of 10 % that have as many multiply-adds
    window_steps: float


def measure(
    config: NetworkConfig, sides: Sequence[int], window: int, repeat: int, queries: Sequence[int] = (),
    device: str = "cpu", dtype: torch.dtype = torch.float32,
) -> list[Row]:  # fmt: skip
    """One row per size of canvas.

    queries: two numbers of them on which the exact layer is timed; none: it is timed on all
    """
    torch.manual_seed(0)
    sizes = {"device": device, "dtype": dtype}
    block = EncoderBlock(config.width, config.heads, config.mlp_ratio, torch.nn, sdpa, **sizes).eval()
    rows = []
    for number, side in enumerate(sides):
        grid = (side // config.token,) * 2
        n = grid[0] * grid[1]
        x = torch.randn(1, n, config.width, **sizes)
        windows = Windows.of(grid, window, x.device)
        few = [HoleTokens.from_grid_mask((torch.arange(n) < count).view(1, *grid)).to(device) for count in queries]
        calls = [*(partial(block, x, None, hole) for hole in few or [None]), partial(block, x, windows)]
        if not number:
            medians(calls, 1, device)  # warms up
        *exact, windowed = medians(calls, repeat, device)
        if few:
            each = (exact[1] - exact[0]) / (queries[1] - queries[0])
            exact = [exact[0] + each * (n - queries[0])]
        seconds = [config.encoder_depth * time for time in (exact[0], windowed)]
        macs = [replace(config, encoder_window=size).encoder_macs(n) for size in (0, window)]
        step = config.macs(round(HOLE * n), config.text_length)
        steps = [encoder / step for encoder in macs]
        rows.append(Row(side, n, *seconds, seconds[0] / seconds[1], *macs, macs[0] / macs[1], *steps))
    return rows


@torch.inference_mode()
def medians(calls: Sequence[Callable[[], torch.Tensor]], repeat: int, device: str) -> list[float]:
    """Median seconds of each call; they take turns, so that a slow moment of the machine meets all of them."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeat):
        for call, times in zip(calls, seconds, strict=True):
            start = clock()
            call().sum().item()  # reading a number back waits for the device
            times.append(clock() - start)
    return [statistics.median(times) for times in seconds]


def table(rows: Sequence[Row]) -> str:
    lines = ["canvas   tokens    exact, s  windows, s   speed-up   in theory   decoder steps at 10 %"]
    for row in rows:
        seconds = f"{row.exact_seconds:11.2f} {row.window_seconds:11.2f}"
        ratios = f"{row.speedup:9.2f}x {row.speedup_in_theory:10.2f}x"
        steps = f"{row.exact_steps:10.1f} -> {row.window_steps:.1f}"
        lines.append(f"{row.canvas:6d} {row.tokens:8d} {seconds} {ratios} {steps}")
    return "\n".join(lines)


def plot(rows: Sequence[Row], title: str) -> Figure:
    """Time of both encoders against the canvas, log-log."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="side of the canvas, px", ylabel="s per encoder call")
    sides = [row.canvas for row in rows]
    axes.plot(sides, [row.exact_seconds for row in rows], "o-", label="all tokens one by one")
    axes.plot(sides, [row.window_seconds for row in rows], "o-", label="near tokens one by one, distant ones in groups")
    for row in rows:
        point = (row.canvas, row.window_seconds)
        axes.annotate(f"{row.speedup:.1f}×", point, xytext=(6, -12), textcoords="offset points")
    axes.margins(x=0.12)
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=9)
    axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "one repeat")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args(argv)
    repeat = 1 if args.quick else args.repeat

    cpu = args.device == "cpu"
    where, dtype = machine(args.device), torch.float32 if cpu else torch.float16
    rows = measure(PIXART_1024, SIDES, WINDOW, repeat, QUERIES if cpu else (), args.device, dtype)

    setting = f"{PIXART_1024.encoder_depth} layers of width {PIXART_1024.width}, windows of {WINDOW}×{WINDOW} tokens"
    scaled = f"one layer timed; the exact one on {' and '.join(map(str, QUERIES))} queries, scaled to all of them"
    report = {
        "figures": {f"speedup_at_{row.canvas}": row.speedup for row in rows},
        "setting": setting,
        "timed": scaled if cpu else "one layer timed",
        "machine": where,
        "dtype": str(dtype),
        "repeat": repeat,
        "table": [vars(row) for row in rows],
    }
    print(f"{setting}; {report['timed']}; {where}, median of {repeat}\n{table(rows)}")
    title = f"{setting}\n{where}, median of {repeat}\n{report['timed']}"
    write(args.output, "encoder", report, plot(rows, title))


if __name__ == "__main__":
    main()
