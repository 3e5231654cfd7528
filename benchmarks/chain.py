"""A chain of edits on one canvas: what lies outside their masks, the time of the last against the first, and memory.

    python benchmarks/chain.py --output DIR [--device cpu] [--edits 20] [--quick]

Prints a table and writes `chain.png` and `chain.json`, for two models: the one that ships, whose latents are a linear
transform of pixels, and one with a small VAE of Stable Diffusion's kind at 512 px, random weights, run lazily. Masks go
round five places, so that the first five edits and the last five do the same work (but for the very first, whose lazy
encode has one hole to look at instead of two). `last_over_first_time` compares their medians, the larger of both;
`memory_growth_mb` is what all tensors in the process take after the last edit, less after the fifth, when the VAE keeps
as many passes in mind as it ever does.

On a CPU, times are processor time of one thread.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, machine, write  # noqa: E402
from benchmarks.lazy_vae import make_vae  # noqa: E402
from lazydiff.model.checkpoint import SHIPPED, load_checkpoint  # noqa: E402
from lazydiff.model.config import (  # noqa: E402
    PIXART_1024,  # noqa: E402
    ModelConfig,
    Sampling,
)
from lazydiff.model.latent_space import DiffusersVAE  # noqa: E402
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.canvas import Canvas, context, finish, start  # noqa: E402
from lazydiff.pipeline.edit import sample, to_latents  # noqa: E402
from lazydiff.vae.canvas_vae import CanvasVAE, LazyVAE, WholeVAE  # noqa: E402

SIDE = 0.25  # of the canvas, a mask's
PLACES = ((0.1, 0.12), (0.55, 0.6), (0.15, 0.55), (0.6, 0.1), (0.35, 0.35))  # top and left; a margin is never touched
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


def shipped() -> tuple[LazyDiffusion, CanvasVAE]:
    model = load_checkpoint(SHIPPED)
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
def measure(name: str, model: LazyDiffusion, vae: CanvasVAE, edits: int, device: str) -> list[Row]:
    """One row per edit, of one canvas."""
    size = model.config.network.canvas
    model.to(device)
    generator = torch.Generator().manual_seed(0)
    canvas = first = start(vae, torch.rand(1, 3, size, size, generator=generator).to(device))
    clock = time.process_time if device == "cpu" else time.perf_counter
    union, rows = torch.zeros(1, 1, size, size, dtype=torch.bool, device=device), []
    for number in range(edits):
        mask = square_at(size, PLACES[number % len(PLACES)]).to(device)
        begin = clock()
        canvas = edit(model, canvas, mask, PROMPTS[number % len(PROMPTS)], seed=number)
        canvas.image.sum().item()  # waits for the device
        milliseconds = 1000 * (clock() - begin)
        union |= mask > 0
        outside = (canvas.image - first.image).abs().masked_fill(union, 0).max()
        rows.append(Row(name, number + 1, milliseconds, tensor_megabytes(), float(outside)))
    return rows


def edit(model: LazyDiffusion, canvas: Canvas, mask: Tensor, prompt: str, seed: int) -> Canvas:
    encoded = context(model, canvas, mask)
    return finish(canvas, to_latents(encoded, sample(model, encoded, [prompt], [seed])), mask)


def square_at(size: int, place: tuple[float, float]) -> Tensor:
    top, left = (round(size * share) for share in place)
    mask = torch.zeros(1, 1, size, size)
    mask[..., top : top + round(size * SIDE), left : left + round(size * SIDE)] = 1
    return mask


def tensor_megabytes() -> float:
    """PassCache behind all tensors that exist, each counted once."""
    gc.collect()
    storages = {}
    for each in gc.get_objects():
        if issubclass(type(each), Tensor) and each.device.type != "meta":
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()) / 1e6


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
    where, size = machine(args.device), 256 if args.quick else 512
    pairs: dict[str, Any] = {
        "the model that ships, 96 px": shipped(),
        f"lazy VAE, {size} px": with_lazy_vae(size, (32, 64, 128, 128), 32),
    }
    rows = [row for name, pair in pairs.items() for row in measure(name, *pair, args.edits, args.device)]
    setting = f"{args.edits} edits of one canvas, masks of {100 * SIDE**2:.2g} % at {len(PLACES)} places in turn"
    report = {
        "figures": figures(rows),
        "setting": setting,
        "quick": args.quick,
        "machine": where,
        "table": [vars(row) for row in rows],
    }
    print(f"{setting}; {where}\n{table(rows)}\n{report['figures']}")
    write(args.output, "chain", report, plot(rows, f"{setting}\n{where}"))


if __name__ == "__main__":
    main()
