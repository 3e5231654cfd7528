"""Several masks of different sizes in one decoder call: laid end to end, padded to the largest, and one by one.

    python -m benchmarks.many_masks --output DIR [--device cpu] [--layers 2] [--repeat 5] [--quick]

PixArt-α's architecture at 1024 px with random weights, each mask twice as with guidance. Prints a table and writes
`many_masks.json`. The three ways take turns in one process. On a CPU, times are processor time of one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from lazydiff.model.config import PIXART_1024, NetworkConfig
from lazydiff.model.decoder import LazyDecoder

from .harness import Harness, arguments
from .subjects import decoder_call, first_tokens, tokens_of

BATCHES = ((10, 5, 2), (10, 2, 1, 1), (5, 5, 4))  # % of the canvas
WAYS = ("packed", "padded", "one by one")


@torch.inference_mode()
def measure(config: NetworkConfig, percents: Sequence[float], harness: Harness) -> dict[str, dict[str, float]]:
    """Milliseconds and multiply-adds (10⁹) of each way, and its time as a share of the padded one's."""
    torch.manual_seed(0)
    decoder = LazyDecoder(config, device=harness.device, dtype=harness.dtype).eval()
    counts = [tokens_of(config, percent) for percent in percents]
    together = first_tokens(config, counts).tile(2)
    alone = [decoder_call(decoder, first_tokens(config, [count]).tile(2)) for count in counts]
    packed, padded = (decoder_call(decoder, hole) for hole in (together, together.keep_padding()))
    times = harness.medians([packed, padded, lambda: [call() for call in alone]])
    exact = 2 * sum(config.macs(count, config.text_length) for count in counts)
    largest = 2 * len(counts) * config.macs(max(counts), config.text_length)
    return {
        way: {"milliseconds": milliseconds, "macs_in_1e9": macs / 1e9, "of_padded": milliseconds / times[1]}
        for way, milliseconds, macs in zip(WAYS, times, (exact, largest, exact), strict=True)
    }


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    lines = [f"{'masks':24}{'way':12}      ms  10⁹ macs  of padded"]
    for masks, ways in rows.items():
        for way, row in ways.items():
            numbers = f"{row['milliseconds']:8.1f}{row['macs_in_1e9']:10.1f}{row['of_padded']:11.2f}"
            lines.append(f"{masks:24}{way:12}{numbers}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "one layer, the first batch", repeat=5)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args(argv)
    harness, layers = Harness.of(args), 1 if args.quick else args.layers
    config = replace(PIXART_1024, decoder_depth=layers)
    rows = {
        " + ".join(f"{percent} %" for percent in batch): measure(config, batch, harness)
        for batch in (BATCHES[:1] if args.quick else BATCHES)
    }
    setting = f"{layers} of PixArt-α XL/2's layers, 1024 px, each mask twice"
    print(f"{setting}; {harness.conditions}\n{table(rows)}")
    figures = {f"packed_of_padded, {masks}": ways["packed"]["of_padded"] for masks, ways in rows.items()}
    harness.write("many_masks", figures, setting=setting, dtype=str(harness.dtype), table=rows)


if __name__ == "__main__":
    main()
