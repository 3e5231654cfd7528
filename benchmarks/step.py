"""Time of one decoder call against the size of the mask, with PixArt-α's architecture at 1024 px and random weights.

    python benchmarks/step.py --output DIR [--device cpu] [--layers 2] [--repeat 5] [--capture] [--quick]

Prints a table and writes `step.png` and `step.json`. All mask sizes are measured in turn, in one process, on one
decoder; 100 % is the same network on the whole canvas, which is what stock PixArt computes. On a CPU, times are
processor time of one thread: what the clock shows on an idle machine, and undisturbed by other programs on a busy one.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lazydiff.networks.captured import CapturedDecoder  # noqa: E402

from benchmarks.common import arguments, machine, write  # noqa: E402
from lazydiff.core.tokens import HoleTokens  # noqa: E402
from lazydiff.model.config import PIXART_1024, NetworkConfig  # noqa: E402
from lazydiff.model.decoder import LazyDecoder  # noqa: E402

PERCENT = (1, 2.5, 5, 10, 25, 50, 100)


@dataclass(frozen=True)
class Row:
    percent: float  # of the canvas
    tokens: int
    milliseconds: float
    speedup: float  # time of all tokens / time of these
    speedup_in_theory: float  # the same of multiply-adds


def interleaved_medians(
    calls: Sequence[Callable[[], object]], repeat: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each call; the calls take turns, so that a slow moment of the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(repeat + 1):
        for call, times in zip(calls, seconds, strict=True):
            start = clock()
            call()
            if turn:  # the first turn warms up
                times.append(clock() - start)
    return [statistics.median(times) for times in seconds]


@torch.inference_mode()
def measure(
    config: NetworkConfig, percents: Sequence[float], repeat: int, batch: int = 1, device: str = "cpu",
    dtype: torch.dtype = torch.float32, capture: bool = False,
) -> list[Row]:  # fmt: skip
    """One row per mask size, the last of which must be 100 %."""
    torch.manual_seed(0)
    decoder = LazyDecoder(config, device=device, dtype=dtype).eval()
    step = CapturedDecoder(decoder) if capture else decoder
    # Once per prompt, as in the product, and so neither in the lazy nor in the full time.
    prompt = torch.randn(batch, config.text_length, config.text_width, device=device, dtype=dtype)
    text, t = decoder.text_keys(prompt), torch.full((batch,), 500, device=device)

    def call(n: int) -> Callable[[], object]:
        mask = (torch.arange(config.grid**2) < n).view(1, config.grid, config.grid)
        hole = HoleTokens.from_grid_mask(mask.expand(batch, -1, -1)).to(device)
        x = torch.randn(batch, n, config.channels * config.patch**2, device=device, dtype=dtype)
        context = torch.randn(batch, n, config.width, device=device, dtype=dtype)
        # Reading a number back waits for the device.
        return lambda: step(x, t, text, hole, context).sum().item()

    counts = [max(1, round(config.grid**2 * percent / 100)) for percent in percents]
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds = interleaved_medians([call(n) for n in counts], repeat, clock)
    macs = [config.macs(n, config.text_length) for n in counts]
    return [
        Row(percent, n, 1000 * second, seconds[-1] / second, macs[-1] / mac)
        for percent, n, second, mac in zip(percents, counts, seconds, macs, strict=True)
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
    axes.set_xticks(percents, [f"{percent:g}" for percent in percents], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=9)
    axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "one layer, two repeats")
    parser.add_argument("--layers", type=int, default=2, help="decoder blocks; they are alike, so time goes with them")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--capture", action="store_true", help="steps replayed from CUDA graphs, in buckets of tokens")
    args = parser.parse_args(argv)
    layers, repeat = (1, 2) if args.quick else (args.layers, args.repeat)

    # On an accelerator, the paper's setting: half precision and a guided pair.
    cpu = args.device == "cpu"
    batch, dtype = (1, torch.float32) if cpu else (2, torch.float16)
    where = machine(args.device)
    config = replace(PIXART_1024, decoder_depth=layers)
    rows = measure(config, PERCENT, repeat, batch, args.device, dtype, args.capture)

    setting = f"{layers} of PixArt-α XL/2's {PIXART_1024.decoder_depth} layers, 1024 px, batch {batch}"
    setting += ", captured" if args.capture else ""
    speedup = {row.percent: row.speedup for row in rows}
    report = {
        "figures": {"ratio_at_10_percent": speedup[10], "ratio_at_5_percent": speedup[5]},
        "setting": setting,
        "machine": where,
        "dtype": str(dtype),
        "repeat": repeat,
        "table": [vars(row) for row in rows],
    }
    print(f"{setting}; {where}, median of {repeat}\n{table(rows)}")
    scale = "" if layers == PIXART_1024.decoder_depth else "\nall layers are alike: times go with their number"
    write(args.output, "step", report, plot(rows, f"{setting}\n{where}, median of {repeat}{scale}"))


if __name__ == "__main__":
    main()
