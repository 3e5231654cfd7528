"""Several masks of different sizes in one decoder call: laid end to end, padded to the largest, and one by one.

    python benchmarks/many_masks.py --output DIR [--device cpu] [--layers 2] [--repeat 5] [--quick]

PixArt-α's architecture at 1024 px with random weights, each mask twice as with guidance. Prints a table and writes
`many_masks.json`. The three ways take turns in one process. On a CPU, times are processor time of one thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, machine  # noqa: E402
from benchmarks.step import interleaved_medians  # noqa: E402
from lazydiff.core.tokens import HoleTokens  # noqa: E402
from lazydiff.model.config import PIXART_1024, NetworkConfig  # noqa: E402
from lazydiff.model.decoder import LazyDecoder  # noqa: E402

BATCHES = ((10, 5, 2), (10, 2, 1, 1), (5, 5, 4))  # % of the canvas
WAYS = ("packed", "padded", "one by one")


@torch.inference_mode()
def measure(
    config: NetworkConfig, percents: Sequence[float], repeat: int, device: str, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Milliseconds and multiply-adds (10⁹) of each way, and its time as a share of the padded one's."""
    torch.manual_seed(0)
    decoder = LazyDecoder(config, device=device, dtype=dtype).eval()
    counts = [round(config.grid**2 * percent / 100) for percent in percents]
    t = torch.full((1,), 500, device=device)

    def call(counts: Sequence[int], masked: bool = False) -> Callable[[], Tensor]:
        places = torch.arange(config.grid**2).view(1, config.grid, config.grid)
        hole = HoleTokens.from_grid_mask(torch.cat([places < count for count in counts])).tile(2).to(device)
        hole = hole.keep_padding() if masked else hole
        rows, n = hole.index.shape
        x, context, prompt = (
            torch.randn(rows, length, width, device=device, dtype=dtype)
            for length, width in (
                (n, config.channels * config.patch**2), (n, config.width), (config.text_length, config.text_width),
            )
        )  # fmt: skip
        text = decoder.text_keys(prompt)
        return lambda: decoder(x, t, text, hole, context)

    alone = [call([count]) for count in counts]
    calls = [call(counts), call(counts, masked=True), lambda: [each() for each in alone]]

    def awaited(run: Callable[[], object]) -> Callable[[], None]:
        def wait() -> None:
            run()
            if device != "cpu":
                torch.cuda.synchronize()

        return wait

    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds = interleaved_medians([awaited(run) for run in calls], repeat, clock)
    exact = 2 * sum(config.macs(count, config.text_length) for count in counts)
    padded = 2 * len(counts) * config.macs(max(counts), config.text_length)
    return {
        way: {"milliseconds": 1000 * second, "macs_in_1e9": macs / 1e9, "of_padded": second / seconds[1]}
        for way, second, macs in zip(WAYS, seconds, (exact, padded, exact), strict=True)
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "one layer, one repeat, the first batch")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args(argv)
    layers, repeat, batches = (1, 1, BATCHES[:1]) if args.quick else (args.layers, args.repeat, BATCHES)
    where, dtype = machine(args.device), torch.float32 if args.device == "cpu" else torch.float16
    config = replace(PIXART_1024, decoder_depth=layers)
    table = {
        " + ".join(f"{percent} %" for percent in batch): measure(config, batch, repeat, args.device, dtype)
        for batch in batches
    }
    setting = f"{layers} of PixArt-α XL/2's layers, 1024 px, each mask twice"
    print(f"{setting}; {where}, median of {repeat}\n{'masks':24}{'way':12}      ms  10⁹ macs  of padded")
    for masks, ways in table.items():
        for way, row in ways.items():
            numbers = f"{row['milliseconds']:8.1f}{row['macs_in_1e9']:10.1f}{row['of_padded']:11.2f}"
            print(f"{masks:24}{way:12}{numbers}")
    report = {"setting": setting, "machine": where, "dtype": str(dtype), "repeat": repeat, "table": table}
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "many_masks.json"
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
