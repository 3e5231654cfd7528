"""The benchmark scripts run; what they measure is not asserted here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from samples import tiny_model

from benchmarks import encoder, encoder_quality, kv_shapes, many_masks, masks, step
from benchmarks.kv_shapes import FLUX, PIXART
from lazydiff.model.config import PIXART_1024

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
    report = json.loads((tmp_path / "new" / "step.json").read_text("utf-8"))
    assert all(report["figures"][f"ratio_at_{percent}_percent"] > 0 for percent in (5, 10))
    assert report["threads"] == 1 and len(report["table"]) == len(step.PERCENT)
    assert (tmp_path / "new" / "step.png").stat().st_size > 1000
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.parametrize("queries", [(), (2, 6)], ids=["all timed", "scaled"])
def test_encoder_measures_tabulates_and_plots(tmp_path, queries):
    rows = encoder.measure(TINY, (256, 512), window=2, repeat=1, queries=queries)
    assert [row.tokens for row in rows] == [256, 1024]
    assert all(row.window_seconds > 0 for row in rows)
    assert rows[1].speedup_in_theory > rows[0].speedup_in_theory > 1
    assert len(encoder.table(rows).splitlines()) == 3
    encoder.plot(rows, "title").savefig(tmp_path / "encoder.png")


def test_encoder_writes_flat_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoder, "PIXART_1024", TINY)
    monkeypatch.setattr(encoder, "SIDES", (512, 1024))
    monkeypatch.setattr(encoder, "QUERIES", (10, 500))
    encoder.main(["--output", str(tmp_path / "new"), "--quick"])
    report = json.loads((tmp_path / "new" / "encoder.json").read_text("utf-8"))
    assert list(report["figures"]) == ["speedup_at_512", "speedup_at_1024"] and len(report["table"]) == 2
    assert (tmp_path / "new" / "encoder.png").stat().st_size > 1000
    assert "speed-up" in capsys.readouterr().out


def test_encoder_quality_compares_pictures_of_the_same_questions(tmp_path, monkeypatch, vocabulary):
    model = tiny_model("flow", vocabulary, "small")
    monkeypatch.setattr(encoder_quality, "Judge", lambda seed, scenes: None)
    monkeypatch.setattr(encoder_quality, "percentage", lambda judge, figure, asked, pictures: len(pictures["removal"]))
    monkeypatch.setattr(encoder_quality, "load_checkpoint", lambda path: model)
    encoder_quality.main(["--output", str(tmp_path), "--scenes", "1", "--windows", "2", "4"])
    report = encoder_quality.json.loads((tmp_path / "encoder-quality.json").read_text("utf-8"))
    exact, windows, near = report["table"].values()
    assert exact["psnr"] == 100 == near["psnr"] > windows["psnr"]  # windows of 4 of 12 tokens: everything is near
    assert report["figures"] == {"largest_loss": 0} and exact["removal"] == 1
    assert model.encoder.window == 0  # as it was


def test_many_masks_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(many_masks, "PIXART_1024", TINY)
    many_masks.main(["--output", str(tmp_path), "--quick"])
    ((masks, ways),) = many_masks.json.loads((tmp_path / "many_masks.json").read_text("utf-8"))["table"].items()
    assert masks == "10 % + 5 % + 2 %" and list(ways) == list(many_masks.WAYS)
    assert ways["packed"]["macs_in_1e9"] == ways["one by one"]["macs_in_1e9"] < ways["padded"]["macs_in_1e9"]
    assert masks in capsys.readouterr().out


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
