"""Figure 5 of the paper: time per step, and of whole edits, against the size of the mask, for three ways to edit.

    python -m benchmarks.figure5 --output DIR [--device cpu] [--repeat 2] [--quick]

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
    shared VAE        the paper's own protocol: the next edit with the full encode and decode that the others have

On a GPU whole edits are measured, in half precision. On a CPU (processor time of one thread, float32) they are composed
of stages, and these of calls that a CPU can do, as `benchmarks/stages.py` says.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lazydiff.model.config import PIXART_1024, PRESETS, NetworkConfig

from .figure5_report import plot, tables
from .harness import Harness, arguments
from .stages import Autoencoder, Networks, NineChannels, Setting, Stage, blend, crop_and_scale
from .subjects import tokens_of

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
    "shared VAE": ("encode", "context", "lazy step", "decode", "blend"),
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
    model: NetworkConfig, crop: NetworkConfig, setting: Setting, vae: Autoencoder
) -> dict[float, dict[str, Stage]]:
    """Every stage of every mask size; what does not depend on the mask is the same call in all."""
    lazy, image, small = (
        Networks(model, setting), Networks(model, setting, NineChannels), Networks(crop, setting, NineChannels)
    )  # fmt: skip
    same = {"image step": image.step(model.grid**2), "crop step": small.step(crop.grid**2), **vae.full(model.canvas)}
    same |= {f"crop {name}": stage for name, stage in vae.full(crop.canvas).items() if not name.startswith("open")}
    result = {}
    for percent in PERCENT:
        n = tokens_of(model, percent)
        result[percent] = same | vae.lazy(model.canvas, percent) | {
            "lazy step": lazy.step(n), "context": lazy.context(n), "blend": blend(model.canvas, percent, setting),
            "crop and scale": crop_and_scale(model.canvas, percent, crop.canvas, setting),
        }  # fmt: skip
    return result


@torch.inference_mode()
def measure(
    models: Sequence[NetworkConfig], crop: NetworkConfig, setting: Setting, vae: Autoencoder, harness: Harness
) -> list[Row]:
    """One row per size of canvas and of mask."""
    torch.manual_seed(0)
    stages = {model: stages_of(model, crop, setting, vae) for model in models}
    every = [stage for masks in stages.values() for some in masks.values() for stage in some.values()]
    calls = list({part.call: None for stage in every for part in stage})
    milliseconds = dict(zip(calls, harness.medians(calls), strict=True))
    rows = []
    for model, masks in stages.items():
        edits: dict[str, dict[int, float]] = {}
        for percent, some in masks.items():
            times = {name: sum(milliseconds[call] * n for call, n in stage) for name, stage in some.items()}
            edits = composed_edits(times) if harness.on_cpu else whole_edits(some, harness, known=edits)
            rows.append(Row(model.canvas, percent, tokens_of(model, percent), times, edits))
    return rows


def composed_edits(times: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Each edit as the sum of its stages."""
    return {
        name: {k: sum(times[stage] * n for stage, n in counted(edit, k)) for k in STEPS} for name, edit in EDITS.items()
    }


def whole_edits(
    stages: Mapping[str, Stage], harness: Harness, known: Mapping[str, dict[int, float]]
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
    missing = [(name, k) for name, times in edits.items() if not times for k in STEPS]
    measured = harness.medians([partial(run, counted(EDITS[name], k)) for name, k in missing])
    for (name, k), milliseconds in zip(missing, measured, strict=True):
        edits[name][k] = milliseconds
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
        "figure5_shared_vae_50_steps": over(ten, "shared VAE", 50),
        "crop_over_shared_vae_at_25_percent": over(quarter, "shared VAE", 50, "RegenerateCrop"),
        "crop_over_lazy_at_25_percent": over(quarter, "next edit", 20, "RegenerateCrop"),
        "crop_over_next_variation_at_25_percent": over(quarter, "next variation", 20, "RegenerateCrop"),
        "crop_step_over_lazy_at_25_percent": quarter.stages["crop step"] / quarter.stages["lazy step"],
    }  # fmt: skip


def memory(models: Sequence[NetworkConfig], vae: Autoencoder, harness: Harness) -> dict[str, float]:
    """MB. Contexts in half precision; the VAE's states in the precision that was run; peak: of everything here, with
    the networks of all ways in memory at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if not harness.on_cpu:
        peak = torch.cuda.max_memory_allocated(harness.device)
    result = {"peak": peak / 1e6}
    for model in models:
        result[f"context_{model.canvas}px_10_percent"] = tokens_of(model, 10) * model.width * 2 / 1e6
        result[f"vae_state_{model.canvas}px"] = vae.state_bytes(model.canvas) / 1e6
    return result


def setting_of(harness: Harness) -> Setting:
    if not harness.on_cpu:  # the paper's: half precision, both halves of a guided step at once
        return Setting(harness.device, harness.dtype, 2, PIXART_1024.decoder_depth, PIXART_1024.encoder_depth)
    return Setting("cpu", harness.dtype, 1, 1, 2, vae_size=256 if harness.quick else 512)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "1024 px alone; on a CPU, the VAE timed at 256 px", repeat=2)
    harness = Harness.of(parser.parse_args(argv))
    setting = setting_of(harness)
    models, vae = MODELS[:1] if harness.quick else MODELS, Autoencoder(setting)
    rows = measure(models, CROP, setting, vae, harness)

    what = "PixArt-α XL/2 and Stable Diffusion's VAE, random weights, guided steps, prompt keys cached"
    how = "whole edits measured"
    if harness.on_cpu:
        how = (f"composed of stages: {setting.decoder_layers} of {PIXART_1024.decoder_depth} decoder and "
               f"{setting.encoder_layers} of {PIXART_1024.encoder_depth} encoder layers timed, VAE at "
               f"{setting.vae_size} px, scaled by multiply-adds")  # fmt: skip
    megabytes = memory(models, vae, harness)
    print(f"{what}; {how}; {harness.conditions}\n{tables(rows, megabytes)}")
    harness.write(
        "figure5", figures(rows), plot(rows, f"{what}\n{how}\n{harness.conditions}"), setting=what, how=how,
        dtype=str(setting.dtype), memory_mb=megabytes, table=[vars(row) for row in rows],
    )  # fmt: skip


if __name__ == "__main__":
    main()
