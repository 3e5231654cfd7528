"""Combinations held out: no training sees them, all questions are about them, and their twins are about others."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from road import as_in_a_process_of_its_own

from benchmarks import held_out
from benchmarks.held_out import HELD_OUT, PartOfScenes, in_a_known_colour, sample_without, unseen_questions
from lazydiff.scenes import COLOURS, SHAPES


def test_of_each_shape_one_colour_is_held_out_and_each_colour_is_known_of_other_shapes() -> None:
    assert sorted(shape for shape, _ in HELD_OUT) == sorted(SHAPES)
    assert {colour for _, colour in HELD_OUT} == set(COLOURS)


def test_no_training_sees_what_is_held_out() -> None:
    rng = np.random.default_rng(0)
    things = [placed.thing for _ in range(600) for placed in sample_without(rng).scene.things]
    seen = {(thing.shape, thing.colour) for thing in things}
    assert not seen & HELD_OUT and len(seen) > 60
    first, again, third = (
        [example.caption for example in islice(PartOfScenes(seed).read(0, 1, 5), 20)] for seed in (3, 3, 4)
    )
    assert first == again != third


def test_questions_ask_for_what_is_held_out_and_their_twins_for_the_same_in_a_known_colour() -> None:
    for kind, questions in unseen_questions(3, 12).items():
        assert [one.caption for one in questions[:5]] == [one.caption for one in unseen_questions(3, 5)[kind]]
        for one in questions:
            twin = in_a_known_colour(one)
            thing, other = one.placed.thing, twin.placed.thing
            assert held_out.held_out(thing) and not held_out.held_out(other)
            assert (thing.shape, thing.texture, thing.size) == (other.shape, other.texture, other.size)
            assert np.array_equal(one.mask, twin.mask) and not np.array_equal(one.image, twin.image)
            assert len(one.siblings) == len(twin.siblings) and all(p.thing == other for p in twin.siblings)
            assert (thing.colour in one.caption, other.colour in twin.caption) in ((True, True), (False, False))
            assert thing.colour not in twin.caption
            if kind == "caption_against_siblings":
                assert one.scene is not None
                assert other.colour not in {placed.thing.colour for placed in one.scene.things}


def test_both_models_are_trained_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "STEPS", 2)
    with as_in_a_process_of_its_own():
        held_out.main(["--output", str(tmp_path), "--quick", "--train", "image"])
    assert (tmp_path / "image" / "model.safetensors").exists() and not (tmp_path / "held-out.json").exists()
    with as_in_a_process_of_its_own():
        held_out.main(["--output", str(tmp_path), "--quick"])
    report = json.loads((tmp_path / "held-out.json").read_text("utf-8"))
    held_out.main(["--output", str(tmp_path / "again"), "--quick", "--models", str(tmp_path)])
    assert json.loads((tmp_path / "again" / "held-out.json").read_text("utf-8"))["table"] == report["table"]
    assert len(report["table"]) == 4 and len(report["held_out"]) == len(SHAPES)
    assert report["figures"]["unseen_minus_seen_lazy_cases"] == 12
    assert -100 <= report["figures"]["unseen_lazy_minus_dense_low"] <= report["figures"]["unseen_lazy_minus_dense"]
