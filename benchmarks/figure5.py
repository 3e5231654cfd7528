"""Figure 5 of the paper: time per step, and of whole edits, against the size of the mask, for three ways to edit.

    python benchmarks/figure5.py --output DIR [--device cpu] [--repeat 2] [--quick]

Prints tables and writes `figure5.png` and `figure5.json`. All ways are measured in turn, in one process, with the
full-size architectures (PixArt-α XL/2, Stable Diffusion's VAE) and random weights, prompt keys cached for all:

    lazy              the context once, then hole tokens alone, lazy VAE, Poisson blend
    RegenerateImage   PixArt-α with nine input channels on all tokens, full VAE, the same blend
    RegenerateCrop    the same network on the square around the hole at 512 px, scaled back, the same blend

Edits are timed from pixels to pixels, without the text encoder, which is the same for all:

    next edit         on a canvas that is open: lazy encode with the hole grey, context, steps, lazy decode, blend
    first edit        opening the canvas (encode and decode all of it, once per picture), then the next edit
    next variation    other seed or prompt on the same mask: steps, lazy decode, blend
    chained edit      the same after an edit elsewhere: the lazy encode has that one's hole to look at as well

On a GPU whole edits are measured, in half precision. On a CPU (processor time of one thread, float32) they are composed
of stages, and these of calls that a CPU can do, as `benchmarks/stages.py` says.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import figure5_report as report  # noqa: E402
from benchmarks.common import arguments, machine  # noqa: E402
from benchmarks.stages import (  # noqa: E402
    Autoencoder,
    Call,
    Networks,
    NineChannels,
    Setting,
    Stage,
    blend,
    crop_and_scale,
)
from benchmarks.step import interleaved_medians  # noqa: E402
from lazydiff.model.config import PIXART_1024, PRESETS, NetworkConfig  # noqa: E402

PERCENT = (1, 5, 10, 25, 50, 100)
STEPS = (50, 20, 8, 4, 1)
MODELS = (PIXART_1024, PRESETS["pixart-2048"])
CROP = PRESETS["pixart-512"]
# What each way does, in order; "step" stands for as many as are taken.
EDITS = {
    "next edit": ("lazy encode", "context", "lazy step", "lazy decode", "blend"),
    "next variation": ("lazy step", "lazy decode", "blend"),
    "first edit": ("open encode", "open decode", "lazy encode", "context", "lazy step", "lazy decode", "blend"),
    "chained edit": ("lazy encode", "context", "lazy step", "lazy decode", "blend", "lazy encode"),
    "RegenerateImage": ("encode", "image step", "decode", "blend"),
    "RegenerateImage, next variation": ("image step", "decode", "blend"),
    "RegenerateCrop": ("crop and scale", "crop encode", "crop step", "crop decode", "blend"),
}


@dataclass(frozen=True)
class Row:
    """One size of mask on one size of canvas; all times in milliseconds."""

    canvas: int  # px
    percent: float
    tokens: int  # of the hole
    stages: dict[str, float]
    edits: dict[str, dict[int, float]]  # name -> steps -> time


def counted(edit: Sequence[str], steps: int) -> list[tuple[str, int]]:
    return [(stage, steps if stage.endswith("step") else 1) for stage in edit]


def stages_of(
    model: NetworkConfig, crop: NetworkConfig, percents: Sequence[float], setting: Setting, vae: Autoencoder
) -> dict[float, dict[str, Stage]]:
    """Every stage of every mask size; what does not depend on the mask is the same call in all."""
    lazy, image, small = (
        Networks(model, setting), Networks(model, setting, NineChannels), Networks(crop, setting, NineChannels)
    )  # fmt: skip
    same = {"image step": image.step(model.grid**2), "crop step": small.step(crop.grid**2), **vae.full(model.canvas)}
    same |= {f"crop {name}": stage for name, stage in vae.full(crop.canvas).items() if not name.startswith("open")}
    result = {}
    for percent in percents:
        n = tokens(model, percent)
        result[percent] = same | vae.lazy(model.canvas, percent) | {
            "lazy step": lazy.step(n), "context": lazy.context(n), "blend": blend(model.canvas, percent, setting),
            "crop and scale": crop_and_scale(model.canvas, percent, crop.canvas, setting),
        }  # fmt: skip
    return result


def tokens(model: NetworkConfig, percent: float) -> int:
    return max(1, round(model.grid**2 * percent / 100))


@torch.inference_mode()
def measure(
    models: Sequence[NetworkConfig], crop: NetworkConfig, percents: Sequence[float], steps: Sequence[int],
    setting: Setting, vae: Autoencoder, repeat: int,
) -> list[Row]:  # fmt: skip
    """One row per size of canvas and of mask."""
    torch.manual_seed(0)
    stages = {model: stages_of(model, crop, percents, setting, vae) for model in models}
    every = [stage for masks in stages.values() for some in masks.values() for stage in some.values()]
    calls = list({part.call: None for stage in every for part in stage})
    seconds = dict(zip(calls, medians(calls, repeat, setting.device), strict=True))
    rows = []
    for model, masks in stages.items():
        edits: dict[str, dict[int, float]] = {}
        for percent, some in masks.items():
            times = {name: sum(1000 * seconds[call] * n for call, n in stage) for name, stage in some.items()}
            if setting.device == "cpu":
                edits = {name: {k: sum(times[s] * n for s, n in counted(edit, k)) for k in steps}
                         for name, edit in EDITS.items()}  # fmt: skip
            else:
                edits = whole_edits(some, steps, repeat, setting.device, known=edits)
            rows.append(Row(model.canvas, percent, tokens(model, percent), times, edits))
    return rows


def medians(calls: Sequence[Call], repeat: int, device: str) -> list[float]:
    def settled(call: Call) -> None:
        call()
        if device != "cpu":
            torch.cuda.synchronize(device)

    clock = time.process_time if device == "cpu" else time.perf_counter
    return interleaved_medians([partial(settled, call) for call in calls], repeat, clock)


def whole_edits(
    stages: Mapping[str, Stage], steps: Sequence[int], repeat: int, device: str, known: Mapping[str, dict[int, float]]
) -> dict[str, dict[int, float]]:
    """Each edit from beginning to end, where every stage is one call.

    known: of another mask; RegenerateImage's are taken from there, as all that depends on the mask is the blend.
    """

    def run(edit: Sequence[tuple[str, int]]) -> None:
        for stage, times in edit:
            ((call, _),) = stages[stage]
            for _ in range(times):
                call()

    edits = {name: dict(known[name]) if known and name.startswith("RegenerateImage") else {} for name in EDITS}
    missing = [(name, k) for name, times in edits.items() if not times for k in steps]
    seconds = medians([partial(run, counted(EDITS[name], k)) for name, k in missing], repeat, device)
    for (name, k), second in zip(missing, seconds, strict=True):
        edits[name][k] = 1000 * second
    return edits


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Of the smaller canvas. Ratios say how many times longer the other way takes."""
    at = {row.percent: row for row in rows if row.canvas == rows[0].canvas}
    ten, quarter = at[10], at[25]

    def over(row: Row, edit: str, steps: int, other: str = "RegenerateImage") -> float:
        return row.edits[other][steps] / row.edits[edit][steps]

    return {
        **{f"step_ratio_at_{p}_percent": at[100].stages["lazy step"] / at[p].stages["lazy step"] for p in (10, 5)},
        **{f"image_step_over_lazy_at_{p}_percent": at[p].stages["image step"] / at[p].stages["lazy step"]
           for p in (10, 5)},
        "guided_step_ms_at_10_percent": ten.stages["lazy step"],
        **{f"end_to_end_{k}_steps": over(ten, "next edit", k) for k in (20, 4)},
        **{f"first_edit_{k}_steps": over(ten, "first edit", k) for k in (20, 4)},
        **{f"chained_edit_{k}_steps": over(ten, "chained edit", k) for k in (20, 4)},
        **{f"next_variation_{k}_steps": over(ten, "next variation", k, "RegenerateImage, next variation")
           for k in (20, 4)},
        "crop_over_lazy_at_25_percent": over(quarter, "next edit", 20, "RegenerateCrop"),
        "crop_over_next_variation_at_25_percent": over(quarter, "next variation", 20, "RegenerateCrop"),
        "crop_step_over_lazy_at_25_percent": quarter.stages["crop step"] / quarter.stages["lazy step"],
    }  # fmt: skip


def memory(models: Sequence[NetworkConfig], vae: Autoencoder, device: str) -> dict[str, float]:
    """MB. Contexts in half precision; the VAE's states in the precision that was run; peak: of everything here, with
    the networks of all ways in memory at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated(device)
    result = {"peak": peak / 1e6}
    for model in models:
        result[f"context_{model.canvas}px_10_percent"] = tokens(model, 10) * model.width * 2 / 1e6
        result[f"vae_state_{model.canvas}px"] = vae.state_bytes(model.canvas) / 1e6
    return result


def setting_of(device: str, quick: bool) -> Setting:
    if device != "cpu":  # the paper's: half precision, both halves of a guided step at once
        return Setting(device, torch.float16, 2, PIXART_1024.decoder_depth, PIXART_1024.encoder_depth)
    return Setting(device, torch.float32, 1, 1, 2, vae_size=256 if quick else 512)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "1024 px alone; on a CPU, the VAE timed at 256 px")
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args(argv)

    where, setting = machine(args.device), setting_of(args.device, args.quick)
    models = MODELS[:1] if args.quick else MODELS
    vae = Autoencoder(setting)
    rows = measure(models, CROP, PERCENT, STEPS, setting, vae, args.repeat)

    how = "whole edits measured"
    if args.device == "cpu":
        how = (f"composed of stages: {setting.decoder_layers} of {PIXART_1024.decoder_depth} decoder and "
               f"{setting.encoder_layers} of {PIXART_1024.encoder_depth} encoder layers timed, VAE at "
               f"{setting.vae_size} px, scaled by multiply-adds")  # fmt: skip
    found: dict[str, Any] = {
        "figures": figures(rows),
        "setting": "PixArt-α XL/2 and Stable Diffusion's VAE, random weights, guided steps, prompt keys cached",
        "how": how,
        "quick": args.quick,
        "machine": where,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(setting.dtype),
        "repeat": args.repeat,
        "memory_mb": memory(models, vae, args.device),
        "table": [vars(row) for row in rows],
    }
    print(f"{found['setting']}; {how}; {where}, median of {args.repeat}")
    print(report.tables(rows, found["memory_mb"]))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "figure5.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    title = f"{found['setting']}\n{how}\n{where}, median of {args.repeat}"
    report.plot(rows, title).savefig(args.output / "figure5.png", dpi=120)


if __name__ == "__main__":
    main()
