"""Differences with bounds, and models at their best, are what they are said to be."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import tiny_model

from lazydiff.cli import main
from lazydiff.evaluation import evidence
from lazydiff.evaluation.evidence import DEVELOPMENT, HARD, PLAIN, TEST, Trial, asked, evaluate_evidence
from lazydiff.evaluation.hard_questions import hard_questions, is_sibling
from lazydiff.evaluation.intervals import paired_difference, paired_ratio
from lazydiff.evaluation.judge import Judge
from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.fit import Crop
from lazydiff.scenes import TOKEN, footprint


@pytest.fixture(scope="module")
def models(vocabulary: bytes) -> dict[str, LazyDiffusion]:
    presets = {"lazy": "small", "image": "small-image", "crop": "small-crop"}
    return {name: tiny_model("flow", vocabulary, preset) for name, preset in presets.items()}


@pytest.fixture(scope="module")
def iddpm(vocabulary: bytes) -> LazyDiffusion:
    return tiny_model("iddpm", vocabulary)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, Trial]:
    """Two small numbers of steps, one sampler, two guidances."""
    trials = {name: trial._replace(steps=(2, 1), samplers=trial.samplers[-1:], guidances=(1.0, 2.0))
              for name, trial in evidence.TRIALS.items()}  # fmt: skip
    monkeypatch.setattr(evidence, "TRIALS", trials)
    return trials


def test_bounds_hold_the_true_difference_as_often_as_they_say() -> None:
    """95 of 100 within sampling error of 200 tries (1.5 points), of answers whose rates are 0.8 and 0.6."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        luck = rng.random(150)  # the same for both: that is what pairs are for
        found = paired_difference([luck < 0.8], [luck < 0.6], seed)
        held += found.low <= 20 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_bounds_hold_the_true_ratio_of_what_varies_together() -> None:
    """95 of 100 within sampling error of 200 tries, of errors 0.8 times as large on questions that are unlike."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        hard = rng.lognormal(size=60)
        found = paired_ratio(0.8 * hard * rng.uniform(0.5, 1.5, 60), hard * rng.uniform(0.5, 1.5, 60), seed)
        held += found.low <= 0.8 <= found.high
    assert 0.88 <= held / 200 <= 0.99
    assert paired_ratio(3 * hard, hard)[1:] == pytest.approx((3, 3, 60))
    with pytest.raises(ValueError, match="same questions"):
        paired_ratio(hard, hard[1:])


def test_the_mean_is_that_of_kinds_and_equal_answers_differ_by_nothing() -> None:
    yes, no = np.ones(10, bool), np.zeros(30, bool)
    one = paired_difference([yes, no], [~yes, no])
    assert (one.mean, one.cases) == (50, 40) and one.low == one.high == 50
    assert paired_difference([no], [no])[:3] == (0, 0, 0)


def test_judgements_of_one_question_are_drawn_together() -> None:
    """What is judged twice is no surer for it; two judgements of different worth count alike."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 50)) < np.array([[0.8], [0.6]])
    once, twice = (paired_difference([np.stack([first] * n)], [np.stack([second] * n)]) for n in (1, 2))
    assert twice == pytest.approx(once) and twice.cases == 50
    third, no = rng.random(30) < 0.5, np.zeros(50, bool)
    mixed = paired_difference([np.stack([first, second]), third], [np.stack([no, no]), no[:30]])
    assert mixed.mean == pytest.approx(100 * np.mean([first.mean(), second.mean(), third.mean()]))
    assert mixed.cases == 80


@pytest.mark.parametrize("second", [[np.ones(3, bool)], [np.ones(0, bool)], [np.ones(4, bool)] * 2])
def test_other_questions_cannot_be_compared(second: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([np.ones(len(second[0]) + 1, bool)], second)
    with pytest.raises(ValueError, match="at least two questions"):
        paired_difference([np.ones(1, bool)], [np.ones(1, bool)])


def test_settings_are_chosen_on_scenes_that_are_not_reported() -> None:
    development, test = asked(DEVELOPMENT, 3), asked(TEST, 3)
    assert development.keys() == test.keys() == {PLAIN, HARD}
    pictures = [{question.image.tobytes() for kinds in asked.values() for some in kinds.values() for question in some}
                for asked in (development, test)]  # fmt: skip
    assert not pictures[0] & pictures[1]


# Harder questions


def test_harder_siblings_have_another_size_stand_off_the_grid_and_are_not_in_the_crop() -> None:
    for question in hard_questions(seed=3, scenes=10)["sibling"]:
        hidden, scene = question.placed, question.scene
        assert scene is not None and len(question.siblings) >= 2 and not (hidden.x % TOKEN or hidden.y % TOKEN)
        crop = Crop.around(torch.from_numpy(question.mask)[None])
        for other in scene.things:
            if other != hidden:
                assert other.x % TOKEN and other.y % TOKEN and other.thing.size != hidden.thing.size
        for sibling in question.siblings:
            assert sibling.thing == replace(hidden.thing, size=sibling.thing.size) and is_sibling(sibling, hidden)
            assert not crop.of(torch.from_numpy(footprint(sibling, question.light))).any()
        assert hidden.thing.colour not in question.caption


def test_a_longer_harder_examination_begins_with_the_shorter_one() -> None:
    longer = hard_questions(seed=3, scenes=4)
    for kind, questions in hard_questions(seed=3, scenes=2).items():
        for one, other in zip(questions, longer[kind], strict=False):
            assert np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)
            assert (one.caption, one.placed) == (other.caption, other.placed)


def test_the_true_pictures_answer_harder_questions() -> None:
    """97 % is asked of the whole evaluation; 40 pictures and a quickly trained classifier may miss one more."""
    found = evidence.ceiling(hard_questions(seed=3, scenes=40), Judge(DEVELOPMENT, scenes=400))
    assert found.keys() == {"sibling_colour", "sibling_shape", "caption_against_siblings", "removal"}
    assert all(each.mean() >= 0.95 for each in found.values())


# The command


def test_a_run_that_was_stopped_goes_on_and_ends_alike(
    models: dict[str, LazyDiffusion], iddpm: LazyDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    few: dict[str, Trial],
) -> None:  # fmt: skip
    """What was answered is not asked again, not even with one more model; each is reported as it did best on the
    development scenes."""
    calls: list[int] = []
    obey = evidence.obey

    def once(*given: object) -> evidence.Obeyed:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return obey(*given)  # type: ignore[arg-type]

    def run(folder: Path, **further: LazyDiffusion) -> dict[str, float]:
        return evaluate_evidence({**models, **further}, folder, scenes=2, quick=True, progress=False)

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(evidence, "obey", once)
        run(tmp_path / "stopped")
    assert len(calls) == 4 and not (tmp_path / "stopped" / "evidence.json").exists()
    with monkeypatch.context() as counted:
        counted.setattr(evidence, "obey", lambda *given: calls.append(1) or obey(*given))
        figures = run(tmp_path / "stopped")
        each = 2 * 2 * (2 + 1)  # plain and harder, two numbers of steps, two guidances and the better one
        assert len(calls) == 3 * each
        more = run(tmp_path / "stopped", iddpm=iddpm)
        assert len(calls) == 4 * each
    whole = run(tmp_path / "whole", iddpm=iddpm)
    assert more == whole and figures == {name: value for name, value in whole.items() if "iddpm" not in name}

    record = json.loads((tmp_path / "whole" / "evidence.json").read_text("utf-8"))
    known = json.loads((tmp_path / "whole" / "answers.json").read_text("utf-8"))["answers"]
    sampled = [row for row in record["table"] if row["steps"]]
    assert len(sampled) == 16 and len(record["table"]) == 18
    names = {trial.name: name for name, trial in few.items()}
    for row in sampled:
        kept = {
            key.split("guidance ")[1].split(",")[0]: np.mean([np.mean(values) for values in known[key].values()])
            for key in known
            if key.startswith(f"{names[row['model']]} ") and f"{row['steps']} steps" in key
            and key.endswith(f"{row['questions']}, development")
        }  # fmt: skip
        assert len(kept) == 2 and kept[f"{row['guidance']:g}"] == max(kept.values())
    assert record["settings"]["precision"] == dict.fromkeys(("lazy", "image", "crop", "iddpm"), "float32")
    assert record["figures"] == whole and "RegenerateCrop" in (tmp_path / "whole" / "evidence.md").read_text("utf-8")


def test_every_difference_has_bounds_and_a_number_of_cases(
    models: dict[str, LazyDiffusion], iddpm: LazyDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of answers that are made up: LazyDiffusion obeys always, RegenerateCrop never, the others every other time."""
    shares = {"lazy": [1, 1], "crop": [0, 0], "image": [0, 1], "longer": [1, 0], "iddpm": [1, 0]}
    compared = {**models, "longer": copy.copy(models["image"]), "iddpm": iddpm}
    owners = {id(model): shares[name] for name, model in compared.items()}

    def made_up(model: LazyDiffusion, _: object, questions: evidence.Questions, judge: Judge) -> evidence.Obeyed:
        figures = evidence.ceiling(questions, judge)
        return dict.fromkeys(figures, np.array(owners[id(model)], bool))

    monkeypatch.setattr(evidence, "obey", made_up)
    figures = evaluate_evidence(compared, tmp_path, scenes=2, quick=True, progress=False)
    expected = {
        f"{name}{hard}{few}": value
        for hard in ("", "_hard")
        for few in ("", "_4_steps", "_2_steps")
        for name, value in {
            "lazy_minus_crop_sibling_colour": 100, "lazy_minus_crop": 100, "lazy_minus_crop_in_sight": 100,
            "lazy_minus_dense": 50, "longer_minus_dense": 0, "lazy_minus_longer": 50,
        }.items()
    } | {f"iddpm_{steps}_steps_minus_lazy{hard}": -50 for steps in (20, 50) for hard in ("", "_hard")}  # fmt: skip
    bounds = [f"{name}{ending}" for name in expected for ending in ("", "_low", "_high", "_cases")]
    assert list(figures.keys() ^ set(bounds)) == [] and {name: figures[name] for name in expected} == expected
    assert figures["lazy_minus_crop_sibling_colour_hard_2_steps_cases"] == 2
    # Of five figures two are of the same questions; the harder ones have no blank canvas.
    assert figures["lazy_minus_crop_cases"] == 8 and figures["lazy_minus_crop_hard_cases"] == 6
    assert figures["lazy_minus_crop_in_sight_cases"] == 6 and figures["lazy_minus_crop_in_sight_hard_cases"] == 4
    assert figures["lazy_minus_dense_low"] < 50 < figures["lazy_minus_dense_high"]


def test_answers_are_of_all_weights(
    models: dict[str, LazyDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: dict[str, Trial]
) -> None:
    """A changed decoder is asked again, the others are not."""
    asked_of: list[LazyDiffusion] = []

    def made_up(model: LazyDiffusion, _: object, questions: evidence.Questions, judge: Judge) -> evidence.Obeyed:
        asked_of.append(model)
        return evidence.ceiling(questions, judge)

    monkeypatch.setattr(evidence, "obey", made_up)
    evaluate_evidence(models, tmp_path, scenes=2, quick=True, progress=False)
    asked_of.clear()
    changed = copy.deepcopy(models["lazy"])
    with torch.no_grad():
        changed.decoder.final_layer.linear.bias += 1
    evaluate_evidence({**models, "lazy": changed}, tmp_path, scenes=2, quick=True, progress=False)
    assert asked_of and all(model is changed for model in asked_of)


def test_a_model_of_another_training_is_refused(models: dict[str, LazyDiffusion], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained by IDDPM"):
        evaluate_evidence({**models, "iddpm": models["lazy"]}, tmp_path, scenes=2)
    with pytest.raises(ValueError, match="kind “image”"):
        evaluate_evidence({**models, "longer": models["crop"]}, tmp_path, scenes=2)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_further_checkpoints(
    models: dict[str, LazyDiffusion], iddpm: LazyDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    few: dict[str, Trial],
) -> None:  # fmt: skip
    for file, model in {"regenerate-image": models["image"], "regenerate-crop": models["crop"],
                        "lazy": models["lazy"], "iddpm": iddpm}.items():  # fmt: skip
        save_checkpoint(model, tmp_path / f"{file}.safetensors")
    monkeypatch.setattr("lazydiff.evaluation.laboratory.WEIGHTS", tmp_path)
    monkeypatch.setattr(evidence, "TRIALS", {name: trial._replace(steps=(1,)) for name, trial in few.items()})
    command = ["evaluate", "--evidence", "--quick", "--scenes", "2", "--output", str(tmp_path / "out")]
    named = {"checkpoint": "lazy", "iddpm": "iddpm", "longer": "regenerate-image"}
    files = [word for name, file in named.items() for word in (f"--{name}", str(tmp_path / f"{file}.safetensors"))]
    assert main([*command, *files]) == 0
    figures = json.loads((tmp_path / "out" / "evidence.json").read_text())["figures"]
    assert {"iddpm_1_steps_minus_lazy", "lazy_minus_longer"} <= figures.keys()


def test_two_comparisons_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--output", str(tmp_path), "--baselines", "--evidence"]) != 0
    assert "one at a time" in capsys.readouterr().err


def test_a_further_checkpoint_is_for_evidence_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--output", str(tmp_path / "out"), "--iddpm", str(tmp_path)]) != 0
    assert "only with --evidence" in capsys.readouterr().err and not (tmp_path / "out").exists()
