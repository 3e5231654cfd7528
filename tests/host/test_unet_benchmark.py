"""The benchmark of lazy UNets, on networks with next to no width; its times are not asserted here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import unet
from benchmarks.kv_shapes import Shape

from .in_process import Pack

pytestmark = pytest.mark.host


def tiny(shape: Shape) -> Shape:
    width, pooled = {"model_channels": 32, "context_dim": 24}, 12 if shape.pooled else 0
    if pooled:
        width |= {"adm_in_channels": 12 + 6 * 256, "num_head_channels": 32}
    return replace(shape, reduced=width, quick=width, text=9, text_width=24, pooled=pooled)


def test_everything_is_measured_and_written(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case._replace(shape=tiny(case.shape), side=384) for case in unet.CASES[:2]]
    monkeypatch.setattr(unet, "load_pack", lambda cpu: pack.module)
    monkeypatch.setattr(unet, "CASES", (*cases, cases[1]._replace(side=320, name="sd15_768")))
    unet.main(["--output", str(tmp_path), "--repeat", "1", "--quick"])
    report = json.loads((tmp_path / "unet.json").read_text("utf-8"))
    assert len(report["calls"]) == 9 and all(row["limit"] > 1 for row in report["calls"])
    assert min(row["tiles"] for row in report["calls"]) == 1 < max(row["tiles"] for row in report["calls"])
    for row in report["samplings"]:
        assert row["first_ratio"] == pytest.approx(row["dense_s"] / row["first_s"])
    for sampling, edit in zip(report["samplings"][::2], report["by words"], strict=True):
        assert edit["diffedit_s"] == pytest.approx(70 / 20 * sampling["dense_s"])  # a mask's 20 calls and 50 steps
        assert edit["diffedit_s"] / edit["fisedit_s"] == pytest.approx(edit["ratio"])
    # Bytes, not times: what is kept is no more and no less than what the formula says.
    assert len(report["memory"]) == 9 and report["figures"]["cache_over_formula"] == pytest.approx(1, abs=0.05)
    names = {f"{name}_step_ratio_at_10_percent" for name in ("sdxl", "sd15", "sd15_768")}
    assert names | {"macs_limit_sdxl", "end_to_end_20_steps", "next_variation_20_steps"} <= report["figures"].keys()
    assert "width 32 of 320" in (tmp_path / "unet.md").read_text("utf-8")
