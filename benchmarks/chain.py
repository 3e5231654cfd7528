"""A chain of edits on one canvas: what lies outside their masks, the time of the last against the first, and memory.

    python -m benchmarks.chain --output DIR [--device cpu] [--edits 20] [--quick]

Prints a table and writes `chain.png` and `chain.json`, for two models: the one that ships, whose latents are a linear
transform of pixels, and one with a small VAE of Stable Diffusion's kind at 512 px, random weights, run lazily. Masks go
round five places, so that the first five edits and the last five do the same work (but for the very first, whose lazy
encode has one hole to look at instead of two). `last_over_first_time` compares their medians, the larger of both;
`memory_growth_mb` is what all tensors in the process take after the last edit, less after the fifth, when the VAE keeps
as many passes in mind as it ever does.

On a CPU, times are processor time of one thread.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lazydiff.evaluation.laboratory import SMALL
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.config import PIXART_1024, ModelConfig, Sampling
from lazydiff.model.latent_space import DiffusersVAE
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.canvas import Canvas, edit_canvas, encode_canvas, open_canvas
from lazydiff.pipeline.decode import to_latents
from lazydiff.pipeline.sample import sample
from lazydiff.vae.canvas_vae import CanvasVAE, LazyVAE, WholeVAE

from .harness import Harness, arguments, tensor_bytes
from .subjects import make_vae, square_mask

PERCENT = 6.25  # of the canvas, a mask's
PLACES = ((0.13, 0.16), (0.73, 0.8), (0.2, 0.73), (0.8, 0.13), (0.47, 0.47))  # see `square_mask`; a margin stays
PROMPTS = ("a red ball", "a green tree", "a blue box", "a yellow flower", "an orange mug")


@dataclass(frozen=True)
class Row:
    model: str
    edit: int  # from 1
    milliseconds: float
    megabytes: float  # of all tensors, after it
    difference: float  # largest of all pixels outside the masks so far, from the first canvas


class AnyText(nn.Module):
    """Stands in for a text encoder."""

    def __init__(self, width: int, length: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(length, width))

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ones = torch.ones(len(prompts), len(self.table), dtype=torch.bool, device=self.table.device)
        return self.table.expand(len(prompts), -1, -1), ones


def laboratory() -> tuple[LazyDiffusion, CanvasVAE]:
    model = load_checkpoint(SMALL)
    return model, WholeVAE(model.latent)


def with_lazy_vae(size: int, channels: Sequence[int], groups: int) -> tuple[LazyDiffusion, CanvasVAE]:
    """A small LazyDiffusion model for a canvas of that size, on a VAE of Stable Diffusion's kind."""
    torch.manual_seed(0)
    network = replace(
        PIXART_1024, canvas=size, width=96, heads=4, decoder_depth=2, encoder_depth=2, text_width=16, text_length=4
    )
    vae = make_vae(channels, groups)
    config = ModelConfig(network, "iddpm", "chain", sampling=Sampling(steps=4))
    model = LazyDiffusion(config, AnyText(network.text_width, network.text_length), DiffusersVAE(vae))
    model.initialise(0)
    return model.eval().requires_grad_(False), LazyVAE(vae, vae.config.scaling_factor)


@torch.inference_mode()
def measure(name: str, model: LazyDiffusion, vae: CanvasVAE, edits: int, harness: Harness) -> list[Row]:
    """One row per edit, of one canvas."""
    size, device = model.config.network.canvas, harness.device
    model.to(device)
    generator = torch.Generator().manual_seed(0)
    canvas = first = open_canvas(vae, torch.rand(1, 3, size, size, generator=generator).to(device))
    union, rows = torch.zeros(1, 1, size, size, dtype=torch.bool, device=device), []
    for number in range(edits):
        mask = square_mask(size, PERCENT, PLACES[number % len(PLACES)]).to(device)
        begin = harness.clock()
        canvas = edit(model, canvas, mask, PROMPTS[number % len(PROMPTS)], seed=number)
        milliseconds = 1000 * (harness.clock() - begin)
        union |= mask > 0
        outside = (canvas.image - first.image).abs().masked_fill(union, 0).max()
        rows.append(Row(name, number + 1, milliseconds, tensor_bytes() / 1e6, float(outside)))
    return rows


def edit(model: LazyDiffusion, canvas: Canvas, mask: Tensor, prompt: str, seed: int) -> Canvas:
    context = encode_canvas(model, canvas, mask)
    return edit_canvas(canvas, to_latents(context, sample(model, context, [prompt], [seed])), mask)


def figures(rows: Sequence[Row]) -> dict[str, float]:
    once = len(PLACES)
    ratios, growth = [], []
    for name in dict.fromkeys(row.model for row in rows):
        some = [row for row in rows if row.model == name]
        times = [row.milliseconds for row in some]
        ratios.append(statistics.median(times[-once:]) / statistics.median(times[:once]))
        growth.append(some[-1].megabytes - some[once - 1].megabytes)
    return {
        "outside_max_difference": max(row.difference for row in rows),
        "last_over_first_time": max(ratios),
        "memory_growth_mb": max(growth),
    }


def table(rows: Sequence[Row]) -> str:
    lines = ["edit         ms        MB   difference outside   model"]
    for row in rows:
        lines.append(f"{row.edit:4d} {row.milliseconds:10.1f} {row.megabytes:9.1f} {row.difference:20g}   {row.model}")
    return "\n".join(lines)


def plot(rows: Sequence[Row], title: str) -> Figure:
    """Time and memory from edit to edit."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    times, megabytes = figure.subplots(1, 2)
    for name in dict.fromkeys(row.model for row in rows):
        some = [row for row in rows if row.model == name]
        for axes, values in ((times, [r.milliseconds for r in some]), (megabytes, [r.megabytes for r in some])):
            axes.plot([row.edit for row in some], values, "o-", label=name)
    for axes, label in ((times, "ms per edit"), (megabytes, "MB of tensors after it")):
        axes.set(xlabel="edit", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    times.legend(fontsize=8, loc="center right")
    figure.suptitle(title, fontsize=9)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "256 px for the lazy VAE")
    parser.add_argument("--edits", type=int, default=20)
    args = parser.parse_args(argv)
    harness, size = Harness.of(args), 256 if args.quick else 512
    pairs = {
        "the laboratory's model, 96 px": laboratory(),
        f"lazy VAE, {size} px": with_lazy_vae(size, (32, 64, 128, 128), 32),
    }
    rows = [row for name, pair in pairs.items() for row in measure(name, *pair, args.edits, harness)]
    setting = f"{args.edits} edits of one canvas, masks of {PERCENT:.2g} % at {len(PLACES)} places in turn"
    print(f"{setting}; {harness.machine}\n{table(rows)}")
    picture = plot(rows, f"{setting}\n{harness.machine}")
    harness.write("chain", figures(rows), picture, setting=setting, table=[vars(row) for row in rows])


if __name__ == "__main__":
    main()
