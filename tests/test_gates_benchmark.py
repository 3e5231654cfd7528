"""The benchmark of gates runs; what it measures is not asserted here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gates
from benchmarks.gates import Row, rival
from lazydiff.model.checkpoint import SHIPPED
from lazydiff.model.config import PIXART_1024

TINY = replace(PIXART_1024, canvas=128, width=48, heads=4, decoder_depth=1, text_width=32, text_length=5)


def test_the_rival_has_at_least_the_time_of_the_gates() -> None:
    rows = [Row(f"{steps} steps", steps, 0.0, 10.0 * steps, 0, 0) for steps in (10, 9, 8, 7)]
    gated = Row("gates", 10, 0.4, 75.0, 0, 0)
    assert rival(gated, [*rows, gated]).steps == 8
    assert rival(replace(gated, milliseconds=80.0), [*rows, gated]).steps == 8
    assert rival(replace(gated, milliseconds=120.0), [*rows, gated]).steps == 10  # nothing takes so long


@pytest.mark.skipif(not SHIPPED.with_suffix(gates.SUFFIX).exists(), reason="the shipped gates are not there")
def test_it_writes_flat_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(gates, "PIXART_1024", TINY)
    monkeypatch.setattr(gates, "EXACT", 4)
    ways = gates.ways
    monkeypatch.setattr(gates, "ways", lambda model, scenes: [ways(model, 10)[i] for i in (0, -1, -4)])
    monkeypatch.setattr(gates, "object_questions", lambda seed, scenes, make=gates.object_questions: make(seed, 2))
    gates.main(["--output", str(tmp_path), "--quick"])
    report = json.loads((tmp_path / "gates.json").read_text("utf-8"))
    expected = {"skip_ratio", "quality_loss", "time_saved", "gain_over_fewer_steps"}
    assert expected <= report["figures"].keys() and report["figures"]["skip_ratio"] == 0.4
    assert (tmp_path / "gates.png").stat().st_size > 1000 and "skipped" in capsys.readouterr().out
