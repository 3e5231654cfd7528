"""The numbers in the documents are those that were measured: every row of every table, and what the text quotes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lazydiff.cache.module_skip import SHIPPED_GATES, load_gates
from lazydiff.model.checkpoint import SHIPPED, load_checkpoint
from lazydiff.training.config import CONFIGS, TrainingConfig
from lazydiff.training.cost import TrainingCost, cost_text

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
WEIGHTS, BASELINES = ROOT / "lazydiff" / "weights", ROOT / "lazydiff" / "evaluation" / "weights"


def measured(path: str) -> Any:
    return json.loads((ROOT / path).read_text("utf-8"))


KV, FIGURE5 = measured("docs/kv-context.json"), measured("docs/figure5.json")
STEP, GATES = measured("docs/step.json"), measured("docs/gates.json")
MASKS, MANY = measured("docs/masks.json"), measured("docs/many-masks.json")
LAZY_VAE, POISSON, CHAIN, LAUNCHES = (
    measured(f"docs/{name}.json") for name in ("lazy-vae", "poisson", "chain", "launches")
)
DATA, PHOTOGRAPHS = measured("docs/data.json"), measured("docs/photographs.json")
ZOOM, CANVAS, UNET = (measured(f"docs/{name}.json") for name in ("zoom", "canvas", "unet"))
UNET_QUALITY = measured("docs/unet-quality.json")
MODEL, COMPARED = measured("lazydiff/weights/evaluation.json"), measured("lazydiff/evaluation/weights/baselines.json")


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


# Tables: the rows of each, as a document writes them


def kv_name(one: dict[str, Any]) -> str:
    kept, anchors = ", with `keep_text`" * one["text_kept"], ", mode *anchors*" * (one["mode"] == "anchors")
    return f"{one['shape']}, {one['steps']} steps{kept}{anchors}"


def kv_samplings(digits: int) -> list[str]:
    ratios = ("first_ratio", "next_ratio")
    return [line(kv_name(one), *(f"{one[key]:.{digits}f}×" for key in ratios)) for one in KV["samplings"]]


def kv_steps() -> list[str]:
    return [
        line(f"{one['shape']}, ring {one['ring']}{', text kept' * one['text_kept']}", str(one["tokens"]),
             f"{one['ratio']:.1f}×", f"{one['limit']:.1f}×")
        for one in KV["steps"]
    ]  # fmt: skip


def unet_calls() -> list[str]:
    return [
        line(f"{one['network']}, {one['hole']}, ring {one['ring']}", str(one["tiles"]), f"{100 * one['share']:.0f} %",
             f"{one['ratio']:.1f}×", f"{one['limit']:.1f}×")
        for one in UNET["calls"]
    ]  # fmt: skip


def unet_samplings() -> list[str]:
    return [line(one["network"], *(f"{one[key]:.2f}×" for key in ("first_ratio", "next_ratio")))
            for one in UNET["samplings"]]  # fmt: skip


def unet_quality() -> list[str]:
    return [
        line(one["setting"], f"{one['full_steps']:.1f}", "–" if one["setting"] == "dense" else f"{one['psnr']:.1f} dB",
             f"{one['seam_ratio']:.2f}")
        for one in UNET_QUALITY["rows"]
    ]  # fmt: skip


def figure5(canvas: int, percent: int) -> dict[str, Any]:
    return next(one for one in FIGURE5["table"] if (one["canvas"], one["percent"]) == (canvas, percent))


STEPS = ("50", "20", "8", "4", "1")
EDITS = {
    "next edit": ("next edit", "RegenerateImage"),
    "edit in a chain, elsewhere than the last": ("chained edit", "RegenerateImage"),
    "next variation on the same mask": ("next variation", "RegenerateImage, next variation"),
    "first edit, with opening the canvas": ("first edit", "RegenerateImage"),
}


def whole_edits() -> list[str]:
    rows = []
    for canvas in (1024, 2048):
        edits = figure5(canvas, 10)["edits"]
        for name, (ours, theirs) in EDITS.items():
            ratios = [f"{edits[theirs][steps] / edits[ours][steps]:.1f}×" for steps in STEPS]
            rows.append(line(f"{canvas} px, {name}", *ratios))
    return rows


def same_vae(percent: int, steps: int) -> tuple[float, float, float]:
    """Times of an edit where everyone encodes and decodes all of what is generated: ours, the image's, the crop's."""
    one = figure5(1024, percent)["stages"]
    both = one["encode"] + one["decode"] + one["blend"]
    crop = one["crop encode"] + one["crop decode"] + one["crop and scale"] + one["blend"]
    ours = one["context"] + steps * one["lazy step"] + both
    return ours, steps * one["image step"] + both, steps * one["crop step"] + crop


def papers_protocol() -> list[str]:
    times = [same_vae(10, int(steps)) for steps in STEPS]
    return [line("1024 px, whole VAE for both", *(f"{image / ours:.1f}×" for ours, image, _ in times))]


def step_alone() -> list[str]:
    return [
        line(f"{one['percent']} %", str(one["tokens"]), f"{one['milliseconds']:.0f} ms", f"{one['speedup']:.1f}×",
             f"{one['speedup_in_theory']:.1f}×")
        for one in STEP["table"]
    ]  # fmt: skip


def zoomed() -> list[str]:
    names = {"zoom": "through `zoom`", "canvas": "all of it"}
    return [
        line(f"{one['size'][1]}×{one['size'][0]}, {names[case]}", f"{one['seconds']:.1f} s",
             f"{one['megabytes']:.0f} MB")
        for case, one in ZOOM["table"].items()
    ]  # fmt: skip


def on_the_canvas() -> list[str]:
    figures = CANVAS["figures"]
    return [
        line("from releasing Enter to the first preview on the screen", f"{figures['first_preview_s']:.2f} s"),
        line("to the variation on the canvas", f"{CANVAS['finished_s']:.2f} s"),
        line("the same edit by `python -m lazydiff edit`, with its start", f"{CANVAS['cli_s']:.2f} s"),
        line("the former by the latter", f"{figures['finished_over_cli']:.2f}"),
        line(f"memory that {CANVAS['strokes'] - CANVAS['warm']} strokes leave on the server, of "
             f"{CANVAS['server_mb']} MB", f"{figures['server_growth_mb']:.1f} MB"),
        line(f"and in the page, of {CANVAS['page_mb']} MB", f"{figures['page_growth_mb']:.1f} MB"),
        line("as many runs of two nodes of the host's in its place",
             f"{CANVAS['page_growth_of_plain_runs_mb']:.1f} MB"),
    ]  # fmt: skip


def many_masks() -> list[str]:
    return [
        line(name, *(f"{one[way]['milliseconds']:.0f} ms" for way in ("packed", "padded", "one by one")),
             f"{one['packed']['of_padded']:.2f}")
        for name, one in MANY["table"].items()
    ]  # fmt: skip


def launches() -> list[str]:
    figures = LAUNCHES["figures"]
    return [
        line("launches for each block", f"{figures['launches_per_block']:.0f}"),
        line("launches for the rest of a step", f"{figures['launches_fixed']:.0f}"),
        line("waits in a step, whatever the sampler", f"{figures['waits_per_step']}"),
        line("launches of a VAE decode after an edit of 10 %, against a full decode",
             f"{figures['lazy_decode_over_full_launches']:.2f}×"),
    ]  # fmt: skip


GATED = {one["name"]: one for one in GATES["table"]}


def gates_by_time() -> list[str]:
    whole = GATED["10 steps"]["milliseconds"]
    return [
        line(name, f"{one['ratio']:.0%}", f"{one['milliseconds'] / whole:.0%}", f"{one['quality']:.1f} %",
             f"{one['distance']:.2f}")
        for name, one in GATED.items()
    ]  # fmt: skip


def gates_by_work() -> list[str]:
    rows = []
    for percent in (30, 40, 50):
        names = (f"trained gates, {percent} %", f"calibrated skips, {percent} %", f"{10 - percent // 10} steps")
        rows.append(line(f"{percent} %", *(f"{GATED[name]['distance']:.2f}" for name in names)))
    return rows


MASK_ROWS = {
    "attention": "**attention mask** (words pointed at, with evidence, led to edges)",
    "difference": "**prompt difference mask** (with evidence, led to edges)",
    "DiffEdit": "DiffEdit's mask, same model and seeds",
    "DiffEdit with evidence and edges": "… with our evidence and edges *",
    "attention, words not pointed at": "attention, words not pointed at *",
    "attention alone": "attention without evidence and edges, words pointed at *",
    "attention as published": "attention with InstDiffEdit's thresholds, nothing of ours *",
    "difference as published": "difference with FISEdit's share of steps, nothing of ours *",
    "difference, stabilised": "prompt difference mask, stabilised *",
    "exact mask in whole tokens": "the exact mask in whole tokens (the grid is 12×12)",
}


def masks() -> list[str]:
    rows = {one["name"]: one for one in MASKS["table"]}
    return [
        line(text, *(f"{rows[name][key]:.0f} %" for key in ("all", "alone", "among")),
             f"{rows[name]['best']:.0f} % at {rows[name]['best_threshold']:g}")
        for name, text in MASK_ROWS.items()
    ]  # fmt: skip


COMPARISONS = {
    "dense": "RegenerateImage, every token at every step",
    "other visible noise": "… with the noise of recordings on the visible tokens *",
    "recorded": "**… recorded, the default** (2 noise levels)",
    "recorded, 1 level": "… recorded at 1 noise level *",
    "recorded, 3 levels": "… recorded at 3 noise levels *",
    "1 anchor": "… 1 anchor",
    "2 anchors": "… 2 anchors",
    "4 anchors": "… 4 anchors",
    "8 anchors": "… 8 anchors",
    "automatic": "… automatic anchors",
    "automatic, fp8": "… automatic, kept in fp8 *",
    "4 anchors, ring 0": "… 4 anchors, ring 0 *",
    "4 anchors, ring 2": "… 4 anchors, ring 2 *",
    "anchors of another prompt": "… no anchor of its own, those of another prompt *",
    "anchors of another prompt and seed": "… those of another prompt and seed *",
    "every step": "RegenerateImage on the questions of the rows marked *",
    "LazyDiffusion": "**LazyDiffusion**, the model that ships",
    "RegenerateCrop": "RegenerateCrop",
}
FEW_STEPS = {
    "dense": "every token at every step",
    "other visible noise": "… with the noise of recordings on the visible tokens *",
    "recorded": "**recorded, the default** (1 noise level)",
    "recorded, 2 levels": "recorded at 2 noise levels *",
    "1 anchor": "1 anchor *",
    "automatic": "automatic anchors *",
}


def comparison() -> list[str]:
    return [compared(name, text) for name, text in COMPARISONS.items()]


def comparison_of_few_steps() -> list[str]:
    asked = [(steps, *names) for steps in (8, 4) for names in FEW_STEPS.items()]
    return [compared(f"{name}, {steps} steps", f"{steps} steps, {text}") for steps, name, text in asked]


def compared(name: str, text: str) -> str:
    one = next(one for one in COMPARED["table"] if one["name"] == name)
    psnr, figures = one["figures"].get("psnr"), one["figures"]
    likeness = "–" if psnr is None or psnr >= 100 else f"{psnr:.1f} dB"
    percent = (f"{figures[key]:.0f} %" for key in ("sibling_colour", "caption_blank", "caption_against_siblings"))
    seam = f"{figures['seam_ratio']:.2f}"
    return line(text, f"{one['dense_steps']:.1f}", f"{one['cost']:.0%}", likeness, *percent, seam)


def evaluation() -> list[str]:
    """As the evaluation itself has written it."""
    text = (WEIGHTS / "evaluation.md").read_text("utf-8")
    rows = [row for row in text.splitlines() if "(`" in row]
    assert len(rows) == 11 and all(f"{MODEL['figures']['removal']} %" in row for row in rows if "`removal`" in row)
    return rows


TABLES: list[tuple[str, list[str]]] = [
    ("README.md", kv_samplings(1)),
    ("docs/benchmarks.md", kv_samplings(2)),
    ("docs/benchmarks.md", kv_steps()),
    ("docs/benchmarks.md", unet_calls()),
    ("docs/benchmarks.md", unet_samplings()),
    ("docs/benchmarks.md", whole_edits()),
    ("docs/benchmarks.md", papers_protocol()),
    ("docs/benchmarks.md", step_alone()),
    ("docs/benchmarks.md", many_masks()),
    ("docs/benchmarks.md", zoomed()),
    ("docs/benchmarks.md", on_the_canvas()),
    ("docs/benchmarks.md", gates_by_time()),
    ("docs/benchmarks.md", gates_by_work()),
    ("docs/benchmarks.md", launches()),
    ("docs/masks.md", masks()),
    ("docs/quality.md", comparison()),
    ("docs/quality.md", unet_quality()),
    ("docs/quality.md", comparison_of_few_steps()),
    ("docs/model-card.md", evaluation()),
]


@pytest.mark.parametrize(("document", "rows"), TABLES, ids=lambda value: value if isinstance(value, str) else "")
def test_tables_say_what_was_measured(document: str, rows: list[str]) -> None:
    text = (ROOT / document).read_text("utf-8").splitlines()
    assert rows and not [row for row in rows if row not in text]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_table_has_a_number_that_was_not_measured(document: Path) -> None:
    known = {row for _, rows in TABLES for row in rows}
    text = document.read_text("utf-8").splitlines()
    body = [row for row, below in zip(text, [*text[1:], ""], strict=True) if row[:1] == "|" and below[:3] != "|--"]
    quantity = re.compile(r"\d\s?(×|%|dB|ms|s|MB) ")
    assert not [row for row in body if quantity.search(row) and row not in known]


# What the text quotes


def in_readme() -> list[str]:
    figures = [COMPARED["figures"][f"psnr_{steps}_steps"] for steps in (20, 8, 4)]
    text = "within {:.1f} dB of the full computation in PSNR at 20 steps, {:.1f} dB at 8 and {:.1f} dB at 4"
    zoom = ZOOM["figures"]
    assert zoom["outside_exact"] == 1
    sdxl, sd15 = (one["first_ratio"] for one in UNET["samplings"])
    return [
        f"an edit is {sdxl:.1f} times faster on SDXL, {sd15:.1f} times on SD 1.5",
        text.format(*figures),
        f"take [{zoom['time_ratio']:.1f} times](docs/benchmarks.md#a-small-hole-in-a-large-picture) the time",
    ]


def in_benchmarks() -> list[str]:
    whole, gates, vae = FIGURE5["figures"], GATES["figures"], LAZY_VAE["figures"]
    unet = UNET["figures"]
    levels = [one["grey_levels"] for one in LAZY_VAE["edits"]]
    stale, crop_alone = (sum(one[way] for one in levels) / len(levels) for way in ("stale statistics", "crop alone"))
    (ours, image, _), (quarter, _, crop) = same_vae(10, 50), same_vae(25, 50)
    opencv = next(one["opencv"] for one in POISSON["table"] if one["size"] == 1024)
    trained = load_gates(SHIPPED_GATES).settings
    assert POISSON["figures"]["error_grey_levels"] < 0.001
    return [
        f"({KV['figures']['cache_over_formula']:.4f} of it)",
        f"{100 * unet['sdxl_share_of_limit']:.0f} % is reached in SDXL",
        f"{100 * unet['sd15_share_of_limit']:.0f} % in SD 1.5 at 512 px",
        f"says ({unet['cache_over_formula']:.4f} of it)",
        f"the automatic policy takes {UNET_QUALITY['figures']['full_steps_auto']:.1f}.",
        f"{ZOOM['figures']['time_ratio']:.2f} of the time and {ZOOM['figures']['memory_ratio']:.2f} of the memory",
        f"{image / ours:.1f} times at 50 steps",
        f"{crop / quarter:.2f} of our time at a mask of 25 % and 50 steps",
        f"{whole['crop_over_lazy_at_25_percent']:.2f} of the time of our next edit",
        f"{whole['crop_over_next_variation_at_25_percent']:.2f} of our next variation",
        f"{100 * vae['decode_flops_share_at_10_percent']:.1f} % of the work",
        f"{len(levels)} edits of 512 px canvases",
        f"differ from a full decode by {vae['edit_difference_grey_levels']:.1f} grey levels",
        f"{stale:.1f} with stale statistics, {crop_alone:.1f} when a crop",
        f"differs by {vae['edit_difference_grey_levels_worst']:.1f}",
        f"in {POISSON['figures']['ms_1024_at_10_percent']:.0f} ms on one CPU thread",
        f"{POISSON['figures']['scipy_over_ours']:.0f} times faster than scipy's",
        f"({POISSON['figures']['scipy_one_factorisation_over_ours']:.0f} times, if scipy",
        f"`seamlessClone` takes {opencv:.0f} ms",
        f"largest difference {CHAIN['figures']['outside_max_difference']:.0f}",
        f"medians of five edits: {CHAIN['figures']['last_over_first_time']:.2f}",
        f"take {100 * gates['time_saved']:.0f} % of the time",
        f"{100 * gates['full_size_time_saved']:.0f} % from a decoder of PixArt-α's size",
        f"{trained['steps']} updates of {trained['scenes']} scenes",
    ]


def in_masks() -> list[str]:
    attention, difference = (MASKS["figures"][f"{kind}_cost_steps"] for kind in ("attention", "difference"))
    steps = f"takes {attention} denoising steps, a prompt difference mask {difference}"
    tuned = MASKS["figures"]
    better = "attention_minus_diffedit_tuned"
    return [
        f"{MASKS['scenes']} held-out scenes",
        steps,
        f"threshold of {MASKS['tuned_threshold']} chosen on other scenes: {tuned['diffedit_tuned_iou']:.1f} %",
        f"is {tuned[better]:.1f} points better; a bootstrap over the {MASKS['scenes']} scenes",
        f"between {tuned[f'{better}_low']:.1f} and {tuned[f'{better}_high']:.1f} with 95 %",
    ]


def in_quality() -> list[str]:
    levels = [TrainingConfig.read(BASELINES / f"regenerate-{kind}.toml").noise_levels for kind in ("image", "crop")]
    assert levels == [1, 1] and TrainingConfig.read(SHIPPED.with_suffix(".toml")).noise_levels == 4
    likeness = [COMPARED["figures"][f"psnr_{steps}_steps"] for steps in (20, 8, 4)]
    unet, by_name = UNET_QUALITY["figures"], {row["setting"]: row for row in UNET_QUALITY["rows"]}
    corrected = unet["psnr_4"] - by_name["4 anchors, not corrected"]["psnr"]
    return [
        f"within {unet['psnr_auto']:.1f} dB, with {unet['full_steps_auto']:.1f} full steps",
        f"{corrected:.1f} dB at four anchors",
        "within {:.1f} dB of the dense one at 20 steps, {:.1f} dB at 8 and {:.1f} dB at 4".format(*likeness),
        f"({COMPARED['figures']['psnr_other_visible_noise']:.1f} dB)",
        f"sibling colour loses {COMPARED['figures']['sibling_colour_loss']:.1f} points".replace("-", "−"),
        f"caption match {COMPARED['figures']['caption_loss']:.1f}".replace("-", "−"),
    ]


def in_model_card() -> list[str]:
    model, training = load_checkpoint(SHIPPED), TrainingConfig.read(SHIPPED.with_suffix(".toml"))
    return [
        f"({SHIPPED.stat().st_size / 1e6:.1f} MB",
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters",
        f"from seed {training.seed}",
        f"stopped at step {training.weigh_variance_from}",
        f"{MODEL['counts']['sibling']} held-out scenes",
    ]


def in_training() -> list[str]:
    config = replace(TrainingConfig.read(CONFIGS["pixart-1024"]), accumulate=2)
    told = cost_text(TrainingCost(config, processes=8), tflops=300).splitlines()
    assert DATA["examples_read"] >= 20_000 and DATA["figures"]["reader_growth_mb"] < 1
    return [
        *(" ".join(line.split()) for line in told),
        f"{DATA['figures']['reader_over_step']:.0f} times as fast as it trains",
        f"[{PHOTOGRAPHS['figures']['psnr']:.1f} dB in the holes]",
    ]


QUOTES = {
    "README.md": in_readme, "docs/benchmarks.md": in_benchmarks, "docs/masks.md": in_masks,
    "docs/quality.md": in_quality, "docs/model-card.md": in_model_card, "docs/training.md": in_training,
}  # fmt: skip


@pytest.mark.parametrize("document", QUOTES)
def test_the_text_quotes_what_was_measured(document: str) -> None:
    text = " ".join((ROOT / document).read_text("utf-8").split())
    assert not [phrase for phrase in QUOTES[document]() if phrase not in text]
