"""The benchmark of a chain of edits runs, and sees what it is there to see; times are not asserted here."""

from __future__ import annotations

import json

import torch

from benchmarks import chain
from benchmarks.chain import Row


def test_a_chain_leaves_the_rest_alone_and_does_not_grow():
    rows = chain.measure("tiny", *chain.with_lazy_vae(128, (8, 8, 16, 16), 4), edits=7, device="cpu")
    assert [row.difference for row in rows] == [0.0] * 7 and all(row.milliseconds > 0 for row in rows)
    assert rows[-1].megabytes == rows[-2].megabytes > 0


def test_memory_is_that_of_all_tensors_each_counted_once():
    before = chain.tensor_megabytes()
    kept = torch.zeros(1_000_000)
    views = [kept[:10], kept.view(10, -1)]
    assert abs(chain.tensor_megabytes() - before - 4) < 0.1 and views


def test_figures_compare_the_same_places_and_take_the_worse_model():
    rows = [Row(name, i + 1, time * (1 + i % 5), 100 + i * grows, 0.0)
            for name, time, grows in (("a", 1, 0), ("b", 2, 1)) for i in range(10)]  # fmt: skip
    rows[-1] = Row("b", 10, 10.0, 109, 0.25)
    assert chain.figures(rows) == {
        "outside_max_difference": 0.25, "last_over_first_time": 1.0, "memory_growth_mb": 5.0,
    }  # fmt: skip


def test_table_plot_and_flat_figures_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chain, "with_lazy_vae", lambda size, *_, make=chain.with_lazy_vae: make(64, (8, 8, 16, 16), 4))
    chain.main(["--output", str(tmp_path), "--edits", "5", "--quick"])
    report = json.loads((tmp_path / "chain.json").read_text("utf-8"))
    assert report["figures"]["outside_max_difference"] == 0 and len(report["table"]) == 10
    assert (tmp_path / "chain.png").stat().st_size > 1000
    assert "difference outside" in capsys.readouterr().out
