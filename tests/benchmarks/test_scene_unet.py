"""The small UNet of the built-in scenes: its training goes on where it stopped; lazy, it is measured against itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import scene_unet, train_unet, unet_quality
from benchmarks.scene_unet import CELL, SceneUNet
from lazydiff.data.stream import ExampleStream, ReadingPlan, SceneExamples, read_batches


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of three steps, with a stop after the second."""
    narrow = {**scene_unet.ARCHITECTURE, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1}
    monkeypatch.setattr(scene_unet, "ARCHITECTURE", narrow)
    monkeypatch.setattr(train_unet, "BATCH", 2)
    monkeypatch.setattr(train_unet, "FITTED", 4)
    for folder, stops in (("whole", [3]), ("stopped", [2, 3])):
        for steps in stops:
            monkeypatch.setattr(train_unet, "rate", lambda step, steps: 1.0)
            train_unet.main(["--output", str(tmp_path / folder), "--steps", str(steps), "--precision", "no"])
    return tmp_path


def test_a_training_that_was_stopped_ends_as_one_that_was_not(weights: Path) -> None:
    one, other = (SceneUNet.load(weights / name / "scene-unet.safetensors").trained for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (weights / "stopped" / "scene-unet.csv").read_text() == (weights / "whole" / "scene-unet.csv").read_text()


def test_a_network_that_knows_nothing_loses_what_a_wiener_estimate_leaves(weights: Path) -> None:
    """1 on average, if channels are of their variance and centred: so it is asked as it is sampled."""
    model = SceneUNet.load(weights / "whole" / "scene-unet.safetensors")
    for parameter in model.unet.conv_out.parameters():
        parameter.zero_()
    plan = ReadingPlan(0, 16, 1, CELL)
    batch = next(read_batches(ExampleStream(SceneExamples(0), plan, range(1)), 1))[0]
    assert 0.5 < float(train_unet.loss(model, batch, torch.Generator().manual_seed(0))) < 2


def test_quality_is_measured_and_written(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet_quality, "SAMPLING", unet_quality.Sampling("ancestral", 3, 1.0, 0.8))
    path = weights / "whole" / "scene-unet.safetensors"
    unet_quality.main(["--output", str(tmp_path), "--weights", str(path), "--scenes", "2", "--quick"])
    report = json.loads((tmp_path / "unet-quality.json").read_text("utf-8"))
    rows = {row["setting"]: row for row in report["rows"]}
    assert rows["dense"]["psnr"] == rows["4 anchors *"]["psnr"] == 100  # more anchors than steps: every step whole
    assert rows["automatic"]["scenes"] == 2 and rows["automatic *"]["scenes"] == rows["1 anchor *"]["scenes"] == 1
    assert 1 <= rows["automatic"]["full_steps"] <= 3 and rows["1 anchor *"]["full_steps"] == 1
    assert rows["1 anchor *"]["psnr"] < 100
    assert report["figures"]["psnr_1"] == pytest.approx(rows["1 anchor *"]["psnr"], abs=1e-3)
    assert report["figures"]["caption_loss"] == pytest.approx(rows["dense"]["caption"] - rows["automatic"]["caption"])
    low, high = (report["figures"][f"caption_loss_{bound}"] for bound in ("low", "high"))
    assert low <= report["figures"]["caption_loss"] <= high
