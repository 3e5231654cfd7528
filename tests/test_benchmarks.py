"""The benchmark scripts run; what they measure is not asserted here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import kv_shapes, masks, step
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


def test_step_measures_tabulates_and_plots(tmp_path):
    rows = step.measure(TINY, (5, 50, 100), repeat=1)
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


def test_masks_are_measured_and_pictured(tmp_path, monkeypatch, capsys):
    """Two scenes, by the methods that are asked about every one."""
    monkeypatch.setattr(masks, "QUICK", 2)
    monkeypatch.setattr(masks, "METHODS", tuple(method for method in masks.METHODS if method.part == 1))
    masks.main(["--output", str(tmp_path / "new"), "--quick"])
    report = masks.json.loads((tmp_path / "new" / "masks.json").read_text("utf-8"))
    assert all(report["figures"][f"{name}_iou"] >= 0 for name in ("attention", "diffedit", "difference"))
    assert report["figures"]["attention_cost_steps"] > 1 and report["scenes"] == 2
    assert (tmp_path / "new" / "masks.png").stat().st_size > 1000
    assert "best threshold" in capsys.readouterr().out


def test_masks_are_asked_for_one_object_that_no_other_is_like():
    for number, asked in enumerate(masks.mask_questions(seed=2, scenes=20)):
        others = [placed for placed in asked.scene.things if placed != asked.placed]
        assert bool(others) == bool(number % 2) and asked.truth.sum() > 20
        for other in others:
            assert other.thing.shape != asked.placed.thing.shape and other.thing.colour != asked.placed.thing.colour
        assert asked.placed.thing.shape in asked.words and asked.placed.thing.shape not in asked.target


def test_overlap_of_masks():
    one, other = torch.zeros(2, 1, 1, 4, 4)
    one[..., :2, :] = other[..., :, :2] = 1
    assert masks.overlap(one, other) == pytest.approx(4 / 12) and masks.overlap(one, one) == 1
    assert masks.overlap(0 * one, one) == masks.overlap(0 * one, 0 * one) == 0
