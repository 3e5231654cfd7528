"""Every benchmark runs, on networks with next to no width, and writes figures that can be; times are not asserted."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import train_vae
from benchmarks.stages import Setting
from benchmarks.vae_edits import CONTENTS, CROP, GOAL, SHIPPED, STALE, Edit, mean, measure_edits
from lazydiff.model.config import PIXART_1024

TINY = replace(
    PIXART_1024, canvas=128, width=48, heads=4, decoder_depth=3, encoder_depth=3, text_width=32, text_length=5
)
ANY, POSITIVE = (-math.inf, math.inf), (1e-9, math.inf)
BOUNDS = ("", "_low", "_high", "_cases")  # endings of a figure with an interval


@dataclass(frozen=True)
class Smoke:
    """What of a benchmark is made smaller, further arguments, and each figure's bounds."""

    figures: dict[str, tuple[float, float]]
    smaller: Callable[[ModuleType], dict[str, Any]]
    arguments: list[str] = field(default_factory=list)


SMOKES = {
    "step": Smoke(
        {"ratio_at_10_percent": POSITIVE, "ratio_at_5_percent": POSITIVE},
        lambda step: {"PIXART_1024": TINY},
    ),
    "shipped": Smoke(
        {name: POSITIVE for name in ("edit_over_dense", "variation_over_dense")},
        lambda shipped: {"LARGE": replace(shipped.LARGE, canvas=128, width=24, heads=2, text_width=16, channels=6)},
    ),
    "many_masks": Smoke(
        {"packed_of_padded, 10 % + 5 % + 2 %": POSITIVE},
        lambda many_masks: {"PIXART_1024": TINY},
    ),
    "poisson": Smoke(
        {"ms_96_at_10_percent": POSITIVE, "scipy_over_ours": POSITIVE, "scipy_one_factorisation_over_ours": POSITIVE,
         "error_grey_levels": (0, 0.02)},
        lambda poisson: {"SIZES": (48, 96, 192, 2048), "DIRECT": 96},
    ),
    "chain": Smoke(
        # Nothing changes outside the masks, and an edit leaves nothing behind.
        {"outside_max_difference": (0, 0), "last_over_first_time": POSITIVE, "memory_growth_mb": (-0.01, 0.01)},
        lambda chain: {"with_lazy_vae": lambda *_, make=chain.with_lazy_vae: make(64, (8, 8, 16, 16), 4)},
        ["--edits", "6"],
    ),
    "figure5": Smoke(
        {name: POSITIVE for name in (
            "step_ratio_at_10_percent", "step_ratio_at_5_percent", "image_step_over_lazy_at_10_percent",
            "image_step_over_lazy_at_5_percent", "guided_step_ms_at_10_percent", "end_to_end_20_steps",
            "end_to_end_4_steps", "first_edit_20_steps", "first_edit_4_steps", "chained_edit_20_steps",
            "chained_edit_4_steps", "figure5_shared_vae_50_steps", "crop_over_shared_vae_at_25_percent",
            "next_variation_20_steps", "next_variation_4_steps", "crop_over_lazy_at_25_percent",
            "crop_over_next_variation_at_25_percent", "crop_step_over_lazy_at_25_percent",
        )},
        lambda figure5: {
            "PIXART_1024": TINY, "MODELS": (TINY,), "CROP": replace(TINY, canvas=64, micro_conditions=False),
            "setting_of": lambda harness: Setting("cpu", torch.float32, 1, 1, 2, 64, (8, 8, 16, 16), 4),
        },
    ),
    "lazy_vae": Smoke(
        # Unchanged latents are decoded as they were but for rounding.
        {"decode_error": (0, 1e-4), "decode_flops_share_at_10_percent": (0.1, 0.5),
         "edit_difference_grey_levels": (0, 20), "edit_difference_grey_levels_worst": (0, 20),
         "edit_difference_grey_levels_chained_worst": (0, 20), "edit_difference_grey_levels_random_weights": (0, 20),
         "encode_latent_error": (0, 0.5)},
        lambda lazy_vae: {
            "PUBLISHED": (128,) * 4, "EDITED": 128, "LENGTH": 2,
            "all_edits": lambda percents, canvases, all=lazy_vae.all_edits: all(percents, canvases)[:2],
        },
        ["--size", "128"],
    ),
    "gates": Smoke(
        {"time_saved": ANY, **{f"gates_beat_equal_macs_50{bound}": POSITIVE for bound in BOUNDS},
         **{f"{kind}_equal_macs_40{bound}": POSITIVE for bound in BOUNDS
            for kind in ("gates_beat", "calibrated_over", "calibrated_on_one_over", "module_by_module_over",
                         "trained_over", "random_over", "random_steps_over")},
         **{f"all_odd_over_equal_macs_50{bound}": POSITIVE for bound in BOUNDS}},
        lambda gates: {
            "EXACT": 12, "DRAWS": 1, "CHOSEN_ON": 2,
            "trained_gates": lambda folder, updates: {0.4: gates.load_gates(gates.GATES)},
            "object_questions": lambda seed, scenes, make=gates.object_questions: make(seed, 2),
        },
    ),
    "data": Smoke(
        {"reader_over_step": POSITIVE, "reader_growth_mb": (0, 100)},
        lambda data: {"QUICK_SCENES": 40, "QUICK_READ": 400, "TIMED": 40, "SIZES": (64,), "STORED": 4, "WIDTH": 16},
    ),
    "photographs": Smoke(
        {"psnr": (0, 100)},  # after two steps a picture of noise
        lambda photographs: {"BOXES": dict(list(photographs.BOXES.items())[:1])},
    ),
    "masks": Smoke(
        # On 200 scenes they are above 60 % (docs/masks.json); four may be worse, but chance is a few percent.
        {"attention_iou": (35, 100), "diffedit_iou": (5, 100), "difference_iou": (35, 100),
         "attention_cost_steps": (1, 100), "difference_cost_steps": (1, 100), "diffedit_tuned_iou": (5, 100),
         **{f"attention_minus_diffedit_tuned{bound}": (-100, 100) for bound in ("", "_low", "_high")},
         "attention_minus_diffedit_tuned_cases": (4, 4)},
        lambda masks: {"QUICK": 4, "METHODS": tuple(method for method in masks.METHODS if method.part == 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMOKES)
def test_it_writes_figures_that_can_be(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke, benchmark = SMOKES[name], importlib.import_module(f"benchmarks.{name}")
    for attribute, value in smoke.smaller(benchmark).items():
        monkeypatch.setattr(benchmark, attribute, value)
    output = tmp_path / "new"
    benchmark.main(["--output", str(output), "--quick", *smoke.arguments])

    report = json.loads((output / f"{name}.json").read_text("utf-8"))
    assert report["figures"].keys() == smoke.figures.keys()
    for figure, (least, most) in smoke.figures.items():
        assert least <= report["figures"][figure] <= most, figure
    assert report["threads"] == 1 and report["quick"] and report["table"]
    assert name in ("many_masks", "data", "shipped") or (output / f"{name}.png").stat().st_size > 1000
    assert all(figure in capsys.readouterr().out for figure in list(smoke.figures)[:1])


def test_training_of_the_small_vae_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps at once, and the same after the second."""
    small = dict(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=1)
    monkeypatch.setattr(train_vae, "ARCHITECTURE", train_vae.ARCHITECTURE | small)
    monkeypatch.setattr(train_vae, "BATCHES", ((2, 16), (1, 32)))
    monkeypatch.setattr(train_vae, "CHECKPOINT", 2)
    monkeypatch.setattr(train_vae, "QUALITY", ((1, 32),))
    arguments = ["--output", str(tmp_path), "--steps", "3", "--seed", "1"]
    train_vae.main(arguments)  # its state is that after two steps
    unbroken = train_vae.load_vae(tmp_path / "tiny-vae.safetensors").state_dict()
    train_vae.main(arguments)
    resumed = train_vae.load_vae(tmp_path / "tiny-vae.safetensors").state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in unbroken.items())
    assert "32 px" in json.loads((tmp_path / "tiny-vae.json").read_text("utf-8"))["psnr"]
    assert len((tmp_path / "tiny-vae.csv").read_text("utf-8").splitlines()) == 3


def test_edits_decoded_lazily_are_within_the_goal_in_the_mean() -> None:
    """Over one edit of each content; a strong change of light alone may exceed it (see docs/lazy-vae.json). Leaving
    out what the library does about statistics is seen."""
    rows = list(measure_edits(train_vae.load_vae(), 256, [Edit(5, "inside", content, 1) for content in CONTENTS]))
    found = {name: mean(row.grey_levels[name] for row in rows) for name in (SHIPPED, CROP, STALE)}
    assert 0 < found[SHIPPED] < min(GOAL, found[CROP], found[STALE]) and rows[0].share < 0.5


def test_the_trained_vae_shows_pictures() -> None:
    """Its training reached 26 dB and more in the mean; one picture may lie below that."""
    vae, image = train_vae.load_vae(), train_vae.held_out(0, 256)
    with torch.inference_mode():
        again = vae.decode(vae.encode(image).latent_dist.mean).sample
    assert train_vae.psnr((again - image).square().mean()) > 22
