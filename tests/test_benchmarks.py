"""The benchmark scripts run; what they measure is not asserted here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import kv_shapes, many_masks, step
from benchmarks.kv_shapes import FLUX, PIXART
from lazydiff.networks.config import PIXART_1024

TINY = replace(PIXART_1024, canvas=128, width=48, heads=4, decoder_depth=1, text_width=32, text_length=5)


@pytest.mark.parametrize(
    "n, speedup", [(41, 103.6), (205, 26.95), (410, 13.72), (820, 6.69), (1024, 5.26), (2048, 2.39)]
)
def test_work_falls_with_the_mask_as_the_paper_says(n, speedup):
    """The cost model's table has the prompt in every step: the caption MLP, then keys and values of each layer."""
    d, length = PIXART_1024.width, PIXART_1024.text_length
    text = length * (PIXART_1024.text_width * d + d**2) + PIXART_1024.decoder_depth * 2 * length * d**2
    lazy, full = (PIXART_1024.macs(tokens, length) + text for tokens in (n, 4096))
    assert full / lazy == pytest.approx(speedup, rel=0.002)


@pytest.mark.parametrize("shape, text, limit", [(PIXART, 0, 9.75), (FLUX, 256, 6.53), (FLUX, 1, 10.59)])
def test_a_kv_context_is_limited_by_the_work_it_leaves(shape, text, limit):
    """At a hole of 10 %: 410 of 4096 tokens, with all text tokens of a joint attention or with one."""
    full = kv_shapes.macs(shape, shape.sizes, 4096, 4096, shape.text if text else 0)
    assert full / kv_shapes.macs(shape, shape.sizes, 4096, 410, text) == pytest.approx(limit, rel=0.001)


def test_calls_take_turns_and_the_first_turn_does_not_count():
    seconds = iter(range(100))
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "ab"]
    assert step.interleaved_medians(calls, repeat=3, clock=lambda: next(seconds)) == [1, 1]
    assert order == ["a", "b"] * 4


@pytest.mark.parametrize("capture", [False, True])
def test_step_measures_tabulates_and_plots(tmp_path, capture):
    rows = step.measure(TINY, (5, 50, 100), repeat=1, capture=capture)
    assert [row.tokens for row in rows] == [3, 32, 64]
    assert all(row.milliseconds > 0 for row in rows) and rows[-1].speedup == 1
    assert len(step.table(rows).splitlines()) == 4
    step.plot(rows, "title").savefig(tmp_path / "step.png")


def test_step_writes_flat_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "PIXART_1024", TINY)
    step.main(["--output", str(tmp_path / "new"), "--quick"])
    report = step.json.loads((tmp_path / "new" / "step.json").read_text("utf-8"))
    assert all(report["figures"][f"ratio_at_{percent}_percent"] > 0 for percent in (5, 10))
    assert report["threads"] == 1 and len(report["table"]) == len(step.PERCENT)
    assert (tmp_path / "new" / "step.png").stat().st_size > 1000
    assert "speed-up" in capsys.readouterr().out


def test_many_masks_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(many_masks, "PIXART_1024", TINY)
    many_masks.main(["--output", str(tmp_path), "--quick"])
    ((masks, ways),) = many_masks.json.loads((tmp_path / "many_masks.json").read_text("utf-8"))["table"].items()
    assert masks == "10 % + 5 % + 2 %" and list(ways) == list(many_masks.WAYS)
    assert ways["packed"]["macs_in_1e9"] == ways["one by one"]["macs_in_1e9"] < ways["padded"]["macs_in_1e9"]
    assert masks in capsys.readouterr().out
