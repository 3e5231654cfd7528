"""The benchmark of small holes on large pictures runs and tells right from wrong; its numbers are not asserted here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import zoom

from .in_process import Pack

pytestmark = pytest.mark.host


def test_it_writes_what_its_processes_have_measured(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both edits made in this process, on smaller pictures."""

    @torch.inference_mode()
    def here(case: str, quick: bool) -> dict[str, Any]:
        return zoom.costs(zoom.Graph(zoom.QUICK[case], 32, zoom=case == "zoom"))

    monkeypatch.setattr(zoom, "SMALL", {**zoom.SMALL, "hidden_size": 128, "num_heads": 1})
    monkeypatch.setattr(zoom, "STEPS", 2)
    monkeypatch.setattr(zoom, "in_a_process", here)
    monkeypatch.setattr(zoom, "peak", iter([100.0, 130.0, 200.0, 220.0]).__next__)
    zoom.main(["--output", str(tmp_path), "--quick", "--repeat", "1"])
    report = json.loads((tmp_path / "zoom.json").read_text("utf-8"))
    assert report["figures"].keys() == {"time_ratio", "memory_ratio", "outside_exact"}
    assert report["figures"]["memory_ratio"] == 1.5 and report["figures"]["outside_exact"] == 1
    assert report["figures"]["time_ratio"] > 0
    assert all(row["changed_inside"] > 0.9 for row in report["table"].values())


def test_a_pixel_outside_is_noticed(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = zoom.Graph((256, 256), 32, zoom=False)
    result = graph.image.clone()
    result[0, 0, 0] = 2
    monkeypatch.setattr(graph, "run", lambda: result)
    assert not zoom.costs(graph)["outside_exact"]
