"""Lazy decode of Stable Diffusion's VAE against the full one: error, work and time against the size of the mask.

    python benchmarks/lazy_vae.py --output DIR [--device cpu] [--size 512] [--repeat 3] [--quick]

Prints tables and writes `lazy_vae.png`, `lazy_vae_edits.png` and `lazy_vae.json`. Work and time are those of random
weights in the published width, as is the error of decoding unchanged latents, which is rounding alone.
`decode_flops_share_at_10_percent` is counted at 1024 px, whatever size is run.

How far an edit's lazy decode is from the full one depends on the weights: `edit_difference_grey_levels` and its
`_worst` are of the small trained VAE in `weights`, on a CPU, over the edits of `vae_edits.py`; `_random_weights` is of
random ones, whose pictures are scaled to the contrast of a photograph.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, machine  # noqa: E402
from benchmarks.step import interleaved_medians  # noqa: E402
from benchmarks.train_vae import load_vae  # noqa: E402
from benchmarks.vae_edits import (  # noqa: E402
    SHIPPED,
    all_edits,
    edit_table,
    mean,
    measure_chain,
    measure_edits,
    plot_edits,
    square,
)  # fmt: skip
from lazydiff.core.poisson import poisson_blend  # noqa: E402
from lazydiff.vae.lazy_vae import decode, lazy_decode, plan_decode  # noqa: E402

PERCENT = (1, 2.5, 5, 10, 25)
PUBLISHED = (128, 256, 512, 512)
CONTRAST = 0.5  # deviation of a photograph's pixels in -1…1
EDITED = 512  # px of the pictures that the trained VAE edits
CANVASES = 6  # of its single edits
CHAINS, LENGTH = 3, 20  # edits in a row


@dataclass(frozen=True)
class Row:
    percent: float  # of the canvas
    share: float  # of the full decode's multiply-adds
    lazy: bool  # False: all was decoded
    milliseconds: float
    full_milliseconds: float
    error: float  # of unchanged latents, largest of all pixels in -1…1
    grey_levels: float  # of an edit after blending, mean inside the mask


def make_vae(channels: Sequence[int] = PUBLISHED, groups: int = 32) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=tuple(channels), norm_num_groups=groups, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return vae.eval().requires_grad_(False)


def flops_share(percent: float = 10, size: int = 1024) -> float:
    with torch.device("meta"):
        vae = make_vae()
    return plan_decode(vae, square(size, percent)).share


@torch.inference_mode()
def measure(
    vae: AutoencoderKL, size: int, percents: Sequence[float], repeat: int, device: str, dtype: torch.dtype
) -> list[Row]:
    torch.manual_seed(0)
    vae = vae.to(device, dtype)
    latent = torch.randn(1, 4, size // 8, size // 8, device=device, dtype=dtype)
    state = decode(vae, latent)
    clock = time.process_time if device == "cpu" else time.perf_counter
    rows = []
    for percent in percents:
        mask = square(size, percent).to(device)
        cells = torch.nn.functional.max_pool2d(mask, 8) > 0
        edited = torch.where(cells, torch.randn_like(latent) + 0.5, latent)
        same, lazy, full = (
            lazy_decode(vae, latent, state, mask),
            lazy_decode(vae, edited, state, mask),
            decode(vae, edited),
        )
        blends = [poisson_blend(state.output.float(), x.float(), mask) for x in (lazy.output, full.output)]
        difference = (blends[0] - blends[1]).abs()[(mask > 0).expand_as(blends[0])].mean()
        grey_levels = 127.5 * CONTRAST * difference / state.output.std()
        # Reading a number back waits for the device.
        seconds = interleaved_medians(
            [lambda: lazy_decode(vae, edited, state, mask).output.sum().item(),  # noqa: B023
             lambda: decode(vae, edited).output.sum().item()],  # noqa: B023
            repeat, clock,
        )  # fmt: skip
        error = (same.output - state.output).abs().max()
        share = lazy.plan.share if lazy.lazy else 1.0
        times = (1000 * second for second in seconds)
        rows.append(Row(percent, share, lazy.lazy, *times, float(error), float(grey_levels)))
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = ["mask %   work %        ms   full ms   faster      error   grey levels after an edit"]
    for row in rows:
        faster = row.full_milliseconds / row.milliseconds
        times = f"{row.milliseconds:9.1f} {row.full_milliseconds:9.1f} {faster:7.1f}x"
        lines.append(f"{row.percent:6g} {100 * row.share:8.1f} {times} {row.error:10.1e} {row.grey_levels:10.2f}")
    return "\n".join(lines)


def plot(rows: Sequence[Row], title: str) -> Figure:
    """Time and work of the lazy decode as shares of the full one's."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="mask, % of the canvas", ylabel="% of the full decode")
    percents = [row.percent for row in rows]
    axes.plot(percents, [100 * row.share for row in rows], "--", color="0.5", label="multiply-adds")
    axes.plot(percents, [100 * row.milliseconds / row.full_milliseconds for row in rows], "o-", label="time, measured")
    axes.set_xticks(percents, [f"{percent:g}" for percent in percents], minor=False)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=9)
    axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "a quarter of the channels, 512 px, one repeat; fewer sizes of edits, one chain")
    parser.add_argument("--size", type=int, default=None, help="px of the canvas; 512 on a CPU, 1024 on a GPU")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args(argv)

    where = machine(args.device)
    size = args.size or (512 if args.device == "cpu" or args.quick else 1024)
    repeat = 1 if args.quick else args.repeat
    channels = [channels // 4 for channels in PUBLISHED] if args.quick else PUBLISHED
    torch.manual_seed(0)
    rows = measure(make_vae(channels), size, PERCENT, repeat, args.device, torch.float32)
    share = flops_share()
    trained = load_vae()
    percents, chains = ((2.5, 10), 1) if args.quick else (PERCENT, CHAINS)
    edits = list(measure_edits(trained, EDITED, all_edits(percents, CANVASES)))
    chained = [measure_chain(trained, EDITED, LENGTH, number) for number in range(chains)]
    differences = [row.grey_levels[SHIPPED] for row in edits]

    width = "a quarter of the channels of " if args.quick else ""
    setting = f"{width}Stable Diffusion's VAE, random weights, {size} px, float32"
    ten = next(row for row in rows if row.percent == 10)
    report = {
        "figures": {
            "decode_error": max(row.error for row in rows),
            "decode_flops_share_at_10_percent": share,
            "edit_difference_grey_levels": mean(differences),
            "edit_difference_grey_levels_worst": max(differences),
            "edit_difference_grey_levels_chained_worst": max(map(max, chained)),
            "edit_difference_grey_levels_random_weights": ten.grey_levels,
            "encode_latent_error": mean(row.latent_error[SHIPPED] for row in edits),
        },
        "setting": setting,
        "machine": where,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeat": repeat,
        "table": [vars(row) for row in rows],
        "edits": [asdict(row) | {"edit": row.edit._asdict()} for row in edits],
        "chains": chained,
    }
    print(f"{setting}; {where}, median of {repeat}\n{table(rows)}")
    print(f"work at a 10 % mask of 1024 px: {100 * share:.1f} %\n\n{edit_table(edits)}")
    print(f"edits in a row, grey levels: {', '.join(f'{mean(level):.2f}' for level in zip(*chained, strict=True))}")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "lazy_vae.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    plot(rows, f"{setting}\n{where}, median of {repeat}").savefig(args.output / "lazy_vae.png", dpi=120)
    plot_edits(edits, chained).savefig(args.output / "lazy_vae_edits.png", dpi=120)


if __name__ == "__main__":
    main()
