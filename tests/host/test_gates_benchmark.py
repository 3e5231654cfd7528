"""The benchmark of gates in the host, with a tiny network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gates_host

from .in_process import Pack

pytestmark = pytest.mark.host


def test_it_times_samplings_that_skip_half_of_the_modules(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(gates_host.PIXART_1024, canvas=128, width=48, heads=4, text_length=8)
    told: list[str] = []
    monkeypatch.setattr(pack.part("nodes.host.stock_gates"), "show", told.append)
    monkeypatch.setattr(gates_host, "load_pack", lambda cpu: pack.module)
    monkeypatch.setattr(gates_host, "PIXART_1024", tiny)
    gates_host.main(["--output", str(tmp_path), "--quick"])
    report: dict[str, Any] = json.loads((tmp_path / "gates_host.json").read_text("utf-8"))
    assert report["figures"].keys() == {"step_ms", "gated_step_ms", "time_saved", "work_saved"}
    assert report["figures"]["step_ms"] > 0 and 0 < report["figures"]["work_saved"] < 0.5
    assert "calibrated" in told[0] and all(line.startswith("Lazy Gates: 50%") for line in told[1:])
