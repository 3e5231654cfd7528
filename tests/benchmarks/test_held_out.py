"""Combinations left out: no training sees them, all questions are about them, and their twins are about others."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from road import as_in_a_process_of_its_own

from benchmarks import held_out
from benchmarks.held_out import (
    CONFIGS,
    HELD,
    LEFT_OUT,
    PartOfScenes,
    by_combination,
    held_out_questions,
    in_known_colours,
    is_held_out,
)
from lazydiff.data.stream import SceneExamples
from lazydiff.scenes import COLOURS, SHAPES, Sample, all_captions, describe, random_sample


def test_of_each_shape_one_colour_is_left_out_and_each_colour_is_known_of_other_shapes() -> None:
    assert sorted(shape for shape, _ in LEFT_OUT) == sorted(SHAPES)
    assert {colour for _, colour in LEFT_OUT} == set(COLOURS)


def test_no_training_sees_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its examples nor the pictures that its latent space is fitted to, where every scene has such a thing."""
    forbidden = {f"{colour} {shape}" for shape, colour in LEFT_OUT}

    def asked_for(examples: SceneExamples) -> set[str]:
        captions = [example.caption for example in islice(examples.read(0, 1, 0), 400)]
        return {words for words in forbidden if any(words in caption for caption in captions)}

    assert len(asked_for(SceneExamples(3))) > 5 and not asked_for(PartOfScenes(3))

    drawn: list[Sample] = []
    part = PartOfScenes(3)
    sample = part.sample
    monkeypatch.setattr(part, "sample", lambda rng: drawn.append(sample(rng)) or drawn[-1])
    pictures = part.pictures(100, 5)
    things = [placed.thing for one in drawn for placed in one.scene.things]
    assert np.array_equal(pictures, np.stack([one.image for one in drawn])) and not any(map(is_held_out, things))
    rng = np.random.default_rng(0)
    assert any(is_held_out(placed.thing) for _ in range(50) for placed in random_sample(rng).scene.things)


def test_questions_ask_for_what_is_held_out_and_their_twins_for_the_same_in_a_known_colour() -> None:
    held, shorter = held_out_questions(3, 12), held_out_questions(3, 5)
    for kind, questions in in_known_colours(held, 3).items():
        assert [one.caption for one in held[kind][:5]] == [one.caption for one in shorter[kind]]
        for one, twin in zip(held[kind], questions, strict=True):
            thing, other = one.placed.thing, twin.placed.thing
            assert one.scene is not None and twin.scene is not None
            assert {placed.thing for placed in one.scene.things if is_held_out(placed.thing)} == {thing}
            assert not any(is_held_out(placed.thing) for placed in twin.scene.things)
            assert (thing.shape, thing.texture, thing.size) == (other.shape, other.texture, other.size)
            assert other.colour not in {placed.thing.colour for placed in one.scene.things}
            assert np.array_equal(one.mask, twin.mask) and not np.array_equal(one.image, twin.image)
            assert len(one.siblings) == len(twin.siblings) and all(p.thing == other for p in twin.siblings)
            assert {one.caption, twin.caption} <= set(all_captions())
            expected = (describe(thing), describe(other)) if kind != "sibling" else (one.caption, one.caption)
            assert (one.caption, twin.caption) == expected


def test_colours_are_counted_by_combination() -> None:
    questions = held_out_questions(3, 12)["sibling"]
    trees = np.array([one.placed.thing.shape == "tree" for one in questions])
    rows = by_combination(
        questions, {("lazy", HELD): {"sibling_colour": trees}, ("dense", HELD): {"sibling_colour": ~trees}}
    )
    assert sum(int(row["questions"]) for row in rows) == 12
    for row in rows:
        assert (row["lazy"], row["dense"]) == ((100, 0) if row["thing"] == "red tree" else (0, 100))


def test_both_models_are_trained_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: held_out.Sampling("ancestral", 2, 2.0) for name in CONFIGS}
    monkeypatch.setattr(held_out, "SAMPLINGS", few)
    with as_in_a_process_of_its_own():
        held_out.main(["--output", str(tmp_path), "--quick", "--train", "dense"])
    assert (tmp_path / "dense" / "model.safetensors").exists() and not (tmp_path / "held-out.json").exists()
    with as_in_a_process_of_its_own():
        held_out.main(["--output", str(tmp_path), "--quick"])
    report = json.loads((tmp_path / "held-out.json").read_text("utf-8"))
    assert len(report["table"]) == 6 and report["steps"] == 2 and (tmp_path / "held-out.png").exists()
    assert report["figures"]["held_out_minus_known_lazy_cases"] == 12
    assert report["figures"]["held_out_lazy_minus_dense_sibling_colour_cases"] == 4
    true = [row["figures"]["sibling_colour"] for row in report["table"] if row["model"] == held_out.TRUE]
    assert true == [100, 100]

    again = ["--output", str(tmp_path / "again"), "--quick", "--trainings", str(tmp_path)]
    with as_in_a_process_of_its_own():
        held_out.main([*again, "--steps", "2"])
    assert json.loads((tmp_path / "again" / "held-out.json").read_text("utf-8"))["table"] == report["table"]
    for words, reason in (["--steps", "3"], "no trainings of 3 steps"), (["--train", "lazy"], "one of them"):
        with pytest.raises(SystemExit):
            held_out.main([*again, *words])
        assert reason in capsys.readouterr().err
