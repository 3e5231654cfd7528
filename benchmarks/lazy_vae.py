"""Lazy decode of Stable Diffusion's VAE against the full one: error, work and time against the size of the mask.

    python -m benchmarks.lazy_vae --output DIR [--device cpu] [--size 512] [--repeat 3] [--quick]

Prints tables and writes `lazy_vae.png`, `lazy_vae_edits.png` and `lazy_vae.json`. Work and time are those of random
weights in the published width, as is the error of decoding unchanged latents, which is rounding alone.
`decode_flops_share_at_10_percent` is counted at 1024 px, whatever size is run.

How far an edit's lazy decode is from the full one depends on the weights: `edit_difference_grey_levels` and its
`_worst` are of the small trained VAE in `weights`, on a CPU, over the edits of `vae_edits.py`; `_random_weights` is of
random ones, whose pictures are scaled to the contrast of a photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from diffusers import AutoencoderKL
from matplotlib.figure import Figure

from lazydiff.core.poisson import poisson_blend
from lazydiff.pipeline.decode import composite_latents
from lazydiff.vae.lazy_vae import full_decode, lazy_decode, plan_decode

from .harness import Harness, arguments, finish
from .subjects import PUBLISHED, make_vae, square_mask
from .train_vae import load_vae
from .vae_edits import CELL, SHIPPED, all_edits, edit_table, mean, measure_chain, measure_edits, plot_edits

PERCENT = (1, 2.5, 5, 10, 25)
CONTRAST = 0.5  # deviation of a photograph's pixels in -1…1
EDITED = 512  # px of the pictures that the trained VAE edits
EDITED_QUICKLY = (2.5, 10)  # %
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


def flops_share(percent: float = 10, size: int = 1024) -> float:
    with torch.device("meta"):
        vae = make_vae()
    return plan_decode(vae, square_mask(size, percent)).share


@torch.inference_mode()
def measure(vae: AutoencoderKL, size: int, harness: Harness) -> list[Row]:
    """One row per mask size."""
    torch.manual_seed(0)
    vae = vae.to(harness.device)
    latent = torch.randn(1, 4, size // CELL, size // CELL, device=harness.device)
    state = full_decode(vae, latent)
    rows = []
    for percent in PERCENT:
        mask = square_mask(size, percent).to(harness.device)
        edited = composite_latents(latent, torch.randn_like(latent) + 0.5, mask, CELL)
        lazily, fully = partial(lazy_decode, vae, edited, state, mask), partial(full_decode, vae, edited)
        same, lazy = lazy_decode(vae, latent, state, mask), lazily()
        blends = [poisson_blend(state.output, x, mask) for x in (lazy.output, fully().output)]
        difference = (blends[0] - blends[1]).abs()[(mask > 0).expand_as(blends[0])].mean()
        grey_levels = 127.5 * CONTRAST * difference / state.output.std()
        error = (same.output - state.output).abs().max()
        share = lazy.plan.share if lazy.lazy else 1.0
        times = harness.medians([lazily, fully])
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
    axes.set_ylim(bottom=0)
    finish(axes, percents, title)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "a quarter of the channels, 512 px; fewer sizes of edits, one chain", repeat=3)
    parser.add_argument("--size", type=int, default=None, help="px of the canvas; 512 on a CPU, 1024 on a GPU")
    args = parser.parse_args(argv)
    harness = Harness.of(args)
    size = args.size or (512 if harness.on_cpu or harness.quick else 1024)
    channels = [channels // 4 for channels in PUBLISHED] if harness.quick else PUBLISHED
    percents, chains = (EDITED_QUICKLY, 1) if harness.quick else (PERCENT, CHAINS)
    torch.manual_seed(0)
    rows, share = measure(make_vae(channels), size, harness), flops_share()
    trained = load_vae()
    edits = list(measure_edits(trained, EDITED, all_edits(percents, CANVASES)))
    chained = [measure_chain(trained, EDITED, LENGTH, number) for number in range(chains)]

    differences = [row.grey_levels[SHIPPED] for row in edits]
    figures = {
        "decode_error": max(row.error for row in rows),
        "decode_flops_share_at_10_percent": share,
        "edit_difference_grey_levels": mean(differences),
        "edit_difference_grey_levels_worst": max(differences),
        "edit_difference_grey_levels_chained_worst": max(map(max, chained)),
        "edit_difference_grey_levels_random_weights": next(row.grey_levels for row in rows if row.percent == 10),
        "encode_latent_error": mean(row.latent_error[SHIPPED] for row in edits),
    }
    width = "a quarter of the channels of " if harness.quick else ""
    setting = f"{width}Stable Diffusion's VAE, random weights, {size} px, float32"
    print(f"{setting}; {harness.conditions}\n{table(rows)}")
    print(f"work at a 10 % mask of 1024 px: {100 * share:.1f} %\n\n{edit_table(edits)}")
    print(f"edits in a row, grey levels: {', '.join(f'{mean(level):.2f}' for level in zip(*chained, strict=True))}")
    harness.write(
        "lazy_vae", figures, plot(rows, f"{setting}\n{harness.conditions}"), setting=setting,
        table=[vars(row) for row in rows], edits=[asdict(row) | {"edit": row.edit._asdict()} for row in edits],
        chains=chained,
    )  # fmt: skip
    plot_edits(edits, chained).savefig(harness.output / "lazy_vae_edits.png", dpi=120)


if __name__ == "__main__":
    main()
