"""Every number in a table of the documents is one that was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from measured import (
    BASELINES,
    CANVAS,
    COMPARED,
    DOCUMENTS,
    EVIDENCE,
    GATES,
    HELD_OUT,
    KV,
    LAUNCHES,
    MANY,
    MASKS,
    MODEL,
    PUBLISHED,
    ROOT,
    SMALL,
    STEP,
    UNET,
    UNET_QUALITY,
    WEIGHTS,
    ZOOM,
    figure5,
)

from lazydiff.evaluation.report import LINES
from lazydiff.evaluation.world_evaluation import WORLD_LINES


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
    return [line(f"{one['network']}, {one['mode']}", *(f"{one[key]:.2f}×" for key in ("first_ratio", "next_ratio")))
            for one in UNET["samplings"]]  # fmt: skip


def unet_by_words() -> list[str]:
    return [
        line(one["network"], f"{one['diffedit_s']:.0f} s", f"{one['fisedit_s']:.0f} s", f"{one['ratio']:.2f}×")
        for one in UNET["by words"]
    ]


def unet_quality() -> list[str]:
    return [
        line(one["setting"], f"{one['full_steps']:.1f}", "–" if one["psnr"] == 100 else f"{one['psnr']:.1f} dB",
             f"{one['sibling_colour']:.0f} %", f"{one['caption']:.0f} %", f"{one['seam_ratio']:.2f}")
        for one in UNET_QUALITY["rows"]
    ]  # fmt: skip


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


def papers_protocol() -> list[str]:
    edits = figure5(1024, 10)["edits"]
    ratios = (edits["RegenerateImage"][steps] / edits["shared VAE"][steps] for steps in STEPS)
    return [line("1024 px, whole VAE for both", *(f"{ratio:.1f}×" for ratio in ratios))]


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
        line(f"the last ten of {CANVAS['strokes']} strokes by the first ten",
             f"{figures['last_over_first_strokes']:.2f}"),
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


def gates() -> list[str]:
    rows, whole = [], GATES["table"][0]["milliseconds"]
    for one in GATES["table"]:
        over = one["over_equal_work"]
        told = "–" if over is None else f"{over['mean']:.2f} ({over['low']:.2f} to {over['high']:.2f})"
        shares = (f"{share:.0%}" for share in (one["ratio"], one["work"], one["milliseconds"] / whole))
        rows.append(line(one["name"], *shares, f"{one['distance']:.2f}", told))
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


def published_masks() -> list[str]:
    return [
        line(one["method"], f"{one['published']:.0f} %",
             f"{one['tuned']:.0f} % at {one['threshold']:g}" if one["threshold"] else "–")
        for one in PUBLISHED["rows"]
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
    "LazyDiffusion": "**LazyDiffusion**, the small model",
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


DIFFERENCES = {
    "lazy_minus_crop_sibling_colour": "LazyDiffusion − RegenerateCrop, sibling colour",
    "lazy_minus_crop": "LazyDiffusion − RegenerateCrop, all questions",
    "lazy_minus_crop_in_sight": "LazyDiffusion − RegenerateCrop, captions and removal",
    "lazy_minus_dense": "LazyDiffusion − RegenerateImage, all questions",
    "lazy_minus_longer": "LazyDiffusion − RegenerateImage trained on, all questions",
    "longer_minus_dense": "RegenerateImage trained on − RegenerateImage, all questions",
}


def bounds(name: str, report: dict[str, Any] = EVIDENCE) -> str:
    mean, low, high = (report["figures"][f"{name}{ending}"] for ending in ("", "_low", "_high"))
    return f"{mean:+.1f} ({low:.1f} to {high:.1f})".replace("-", "−")


def differences() -> list[str]:
    steps = "", "_4_steps", "_2_steps"
    return [
        line(f"{text}{', harder' if hard else ''}", *(bounds(f"{name}{hard}{few}") for few in steps))
        for hard in ("", "_hard") for name, text in DIFFERENCES.items()
    ]  # fmt: skip


def objectives() -> list[str]:
    rows = {"by IDDPM − by the flow path": "", "by IDDPM − by the flow path, harder": "_hard"}
    return [
        line(text, *(bounds(f"iddpm_{steps}_steps_minus_lazy{hard}") for steps in (20, 50)))
        for text, hard in rows.items()
    ]


def rates() -> list[str]:
    """Of models at their best, and of the true pictures."""
    asked = "sibling_colour", "sibling_shape", "caption_blank", "caption_against_siblings", "removal"
    rows = []
    for one in EVIDENCE["table"]:
        way = f"{one['steps']} steps, {one['sampler']}, guidance {one['guidance']:g}" if one["steps"] else "–"
        cells = (f"{one['figures'][name]:.1f} %" if name in one["figures"] else "–" for name in asked)
        rows.append(line(f"{one['model']}{', harder' if one['questions'] == 'harder' else ''}", way, *cells))
    return rows


def held_out() -> list[str]:
    names = {"lazy": "LazyDiffusion", "dense": "RegenerateImage", "true pictures": "the true pictures"}
    asked = "sibling_colour", "sibling_shape", "caption_blank", "caption_against_siblings"
    return [
        line(f"{names[one['model']]}, {one['things']}", *(f"{one['figures'][name]:.1f} %" for name in asked))
        for one in HELD_OUT["table"]
    ]


def held_out_differences() -> list[str]:
    rows = {
        "held_out_minus_known_lazy": "LazyDiffusion, held out − known",
        "held_out_minus_known_dense": "RegenerateImage, held out − known",
        "held_out_lazy_minus_dense": "LazyDiffusion − RegenerateImage, held out",
        "known_lazy_minus_dense": "LazyDiffusion − RegenerateImage, known",
    }
    return [
        line(text, *(bounds(f"{name}{figure}", HELD_OUT) for figure in ("_sibling_colour", "")))
        for name, text in rows.items()
    ]


def evaluation() -> list[str]:
    """As the evaluation itself has written it."""
    return evaluated(WEIGHTS / "evaluation.md", MODEL, len(WORLD_LINES))


def small_evaluation() -> list[str]:
    return evaluated(BASELINES / "lazydiffusion-small.md", SMALL, len(LINES))


def evaluated(table: Path, report: dict[str, Any], number: int) -> list[str]:
    rows = [row for row in table.read_text("utf-8").splitlines() if "(`" in row]
    assert len(rows) == number and all(f"{report['figures']['removal']} %" in row for row in rows if "`removal`" in row)
    return rows


TABLES: list[tuple[str, list[str]]] = [
    ("README.md", kv_samplings(1)),
    ("docs/benchmarks.md", kv_samplings(2)),
    ("docs/benchmarks.md", kv_steps()),
    ("docs/benchmarks.md", unet_calls()),
    ("docs/benchmarks.md", unet_samplings()),
    ("docs/benchmarks.md", unet_by_words()),
    ("docs/benchmarks.md", whole_edits()),
    ("docs/benchmarks.md", papers_protocol()),
    ("docs/benchmarks.md", step_alone()),
    ("docs/benchmarks.md", many_masks()),
    ("docs/benchmarks.md", zoomed()),
    ("docs/benchmarks.md", on_the_canvas()),
    ("docs/benchmarks.md", gates()),
    ("docs/benchmarks.md", launches()),
    ("docs/masks.md", masks()),
    ("docs/masks.md", published_masks()),
    ("docs/quality.md", comparison()),
    ("docs/quality.md", unet_quality()),
    ("docs/quality.md", differences()),
    ("docs/quality.md", objectives()),
    ("docs/quality.md", rates()),
    ("docs/quality.md", held_out()),
    ("docs/quality.md", held_out_differences()),
    ("docs/quality.md", comparison_of_few_steps()),
    ("docs/model-card.md", evaluation()),
    ("docs/laboratory.md", small_evaluation()),
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
