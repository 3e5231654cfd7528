"""The arithmetic behind figures whose definition is subtle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import chain, figure5, gates, kv_shapes, masks, stages
from benchmarks.harness import Harness, interleaved_medians, tensor_bytes
from benchmarks.kv_shapes import FLUX, PIXART
from benchmarks.stages import Networks, Part, Setting
from lazydiff.model.config import PIXART_1024

TINY = replace(
    PIXART_1024, canvas=128, width=48, heads=4, decoder_depth=7, encoder_depth=5, text_width=32, text_length=5
)
CPU = Setting("cpu", torch.float32, 1, 1, 2, vae_size=64, vae_channels=(8, 8, 16, 16), vae_groups=4)
WHOLE = replace(CPU, rows=2, decoder_layers=7, encoder_layers=5, vae_size=None)  # as on a GPU


def test_calls_take_turns_and_the_first_turn_does_not_count():
    seconds = iter(range(100))
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "ab"]
    assert interleaved_medians(calls, repeat=3, clock=lambda: next(seconds)) == [1, 1]
    assert order == ["a", "b"] * 4


def test_memory_is_that_of_all_tensors_each_counted_once():
    before = tensor_bytes()
    kept = torch.zeros(1_000_000)
    views = [kept[:10], kept.view(10, -1)]
    assert abs(tensor_bytes() - before - 4e6) < 1e5 and views


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


@pytest.mark.parametrize("setting", [CPU, WHOLE])
def test_a_step_is_two_calls_of_all_layers(setting, monkeypatch):
    """Calls are replaced by what they compute, in rows: layers, and what a call does only once."""
    monkeypatch.setattr(stages, "step", lambda decoder, n, setting: (decoder.config.decoder_depth, setting.rows))
    parts = Networks(TINY, setting).step(10)
    assert sum(times * rows * layers for (layers, rows), times in parts) == pytest.approx(2 * TINY.decoder_depth)
    assert sum(times * rows for (_, rows), times in parts) == pytest.approx(2)


@pytest.mark.parametrize("setting", [CPU, WHOLE])
def test_a_context_is_one_layer_for_the_hole_and_all_others_for_the_canvas(setting, monkeypatch):
    monkeypatch.setattr(Networks, "_context_call", lambda self, layers, n: (layers, n))
    parts = Networks(TINY, setting).context(10)
    assert sum(times * (layers - 1) for (layers, _), times in parts) == pytest.approx(TINY.encoder_depth - 1)
    assert sum(times for (_, n), times in parts if n == 10) == 1 and sum(times for _, times in parts) == 1


def test_a_vae_is_scaled_by_its_work():
    vae = stages.Autoencoder(CPU)
    (decode,), (small,) = vae.full(256)["decode"], vae.full(64)["decode"]
    assert small.times == 1 and 16 < decode.times < 40  # its attention grows faster than the picture
    (lazy,) = vae.lazy(256, 1)["lazy decode"]
    assert 0 < lazy.times < decode.times
    assert vae.lazy(256, 50)["lazy encode"] == vae.full(256)["open encode"]


def test_a_whole_edit_goes_through_the_stages_whose_times_a_composed_one_adds(tmp_path, monkeypatch):
    names = {stage for edit in figure5.EDITS.values() for stage in edit}
    monkeypatch.setattr(figure5, "STEPS", (3, 1))
    edits = figure5.composed_edits({name: 1000.0 if name.endswith("step") else 1.0 for name in names})
    assert edits["next edit"] == {3: 3004, 1: 1004}

    calls: list[str] = []
    timed = {name: (Part(lambda name=name: calls.append(name), 1),) for name in names}
    assert figure5.whole_edits(timed, Harness(tmp_path), known={}).keys() == edits.keys()
    assert calls[:7] == ["lazy encode", "context", *3 * ["lazy step"], "lazy decode", "blend"]


def test_a_chain_compares_the_same_places_and_takes_the_worse_model():
    rows = [chain.Row(name, i + 1, time * (1 + i % 5), 100 + i * grows, 0.0)
            for name, time, grows in (("a", 1, 0), ("b", 2, 1)) for i in range(10)]  # fmt: skip
    rows[-1] = chain.Row("b", 10, 10.0, 109, 0.25)
    assert chain.figures(rows) == {
        "outside_max_difference": 0.25, "last_over_first_time": 1.0, "memory_growth_mb": 5.0,
    }  # fmt: skip


def test_equal_work_lies_between_whole_numbers_of_steps():
    """Of errors that fall as 1 / steps; and skipping every module of every second step halves all but what is never
    skipped."""
    plain = {steps: np.array([1.0, 3.0]) / steps for steps in (8, 7, 6, 5)}
    assert np.allclose(gates.of_equal_work(6.4, plain), np.array([1.0, 3.0]) / 6.4)
    assert np.array_equal(gates.of_equal_work(7.0, plain), plain[7])
    table = torch.zeros(10, 2 * TINY.decoder_depth, dtype=torch.bool)
    full, tokens = gates.work_of(table, TINY, [5, 9]), [5, 9]
    table[1::2] = True
    never = replace(TINY, decoder_depth=0)
    rest = sum(never.macs(n, TINY.text_length) for n in tokens)
    cross = sum(2 * TINY.width * n * (TINY.width + TINY.text_length) for n in tokens)
    assert full - gates.work_of(table, TINY, tokens) == (full - 10 * (rest + TINY.decoder_depth * cross)) / 2


@pytest.mark.parametrize("whole_steps", [False, True])
def test_controls_are_drawn_from_what_may_be_skipped(whole_steps):
    odd = (torch.arange(10) % 2 == 1)[:, None].expand(10, 12)
    drawn = [gates.at_random(odd, 0.3, np.random.default_rng(seed), whole_steps) for seed in range(40)]
    assert all(table.sum() == 36 and not table[::2].any() for table in drawn)
    assert all((table.all(1) == table.any(1)).all() for table in drawn) == whole_steps
    often = torch.stack(drawn).double().mean(0)[1::2]  # 0.6 of each, within what 40 draws of it scatter
    assert abs(float(often.mean()) - 0.6) < 1e-9 and 0.2 < often.min() < often.max() < 0.95


def test_masks_are_asked_for_one_object_that_no_other_is_like():
    for number, asked in enumerate(masks.mask_questions(seed=2, scenes=20)):
        others = [placed for placed in asked.scene.things if placed != asked.placed]
        assert bool(others) == bool(number % 2) and asked.truth.sum() > 20
        for other in others:
            assert other.thing.shape != asked.placed.thing.shape and other.thing.colour != asked.placed.thing.colour
        assert asked.placed.thing.shape in asked.words and asked.placed.thing.shape not in asked.target
