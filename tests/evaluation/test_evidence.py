"""Differences with bounds, and models at their best, are what they are said to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples import tiny_model

from lazydiff.cli import main
from lazydiff.evaluation import evidence
from lazydiff.evaluation.evidence import DEVELOPMENT, TEST, asked, evaluate_evidence
from lazydiff.evaluation.intervals import paired_difference, paired_ratio
from lazydiff.model.lazydiffusion import LazyDiffusion


@pytest.fixture(scope="module")
def models(vocabulary: bytes) -> dict[str, LazyDiffusion]:
    presets = {"lazy": "small", "image": "small-image", "crop": "small-crop"}
    made = {name: tiny_model("flow", vocabulary, preset) for name, preset in presets.items()}
    for model in made.values():
        model.config = replace(model.config, sampling=replace(model.config.sampling, steps=2))
    return made


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


@pytest.mark.parametrize("second", [[np.ones(3, bool)], [np.ones(0, bool)], [np.ones(4, bool)] * 2])
def test_other_questions_cannot_be_compared(second: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([np.ones(len(second[0]) + 1, bool)], second)
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([np.ones(0, bool)], [np.ones(0, bool)])


def test_settings_are_chosen_on_scenes_that_are_not_reported() -> None:
    development, test = asked(DEVELOPMENT, 3), asked(TEST, 3)
    assert development.keys() == test.keys()
    pictures = [{question.image.tobytes() for some in asked.values() for question in some}
                for asked in (development, test)]  # fmt: skip
    assert not pictures[0] & pictures[1]


def test_a_run_that_was_stopped_goes_on_and_ends_alike(
    models: dict[str, LazyDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered is not asked again; each model is reported as it did best on the development scenes."""
    monkeypatch.setattr(evidence, "GUIDANCES", (1.0, 2.0))
    monkeypatch.setattr(evidence, "SAMPLERS", ("euler",))
    calls: list[int] = []
    obey = evidence.obey

    def once(*given: object) -> evidence.Obeyed:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return obey(*given)  # type: ignore[arg-type]

    def run(folder: Path) -> dict[str, float]:
        return evaluate_evidence(models, folder, scenes=2, quick=True, progress=False)

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(evidence, "obey", once)
        run(tmp_path / "stopped")
    assert len(calls) == 4 and not (tmp_path / "stopped" / "evidence.json").exists()
    with monkeypatch.context() as counted:
        counted.setattr(evidence, "obey", lambda *given: calls.append(1) or obey(*given))
        figures = run(tmp_path / "stopped")
    assert len(calls) == 9  # two settings of three models, and each at its best
    assert figures == run(tmp_path / "whole")

    record = json.loads((tmp_path / "whole" / "evidence.json").read_text("utf-8"))
    known = json.loads((tmp_path / "whole" / "answers.json").read_text("utf-8"))["answers"]
    for name, best in record["sampling"].items():
        tried = {key: np.mean([np.mean(values) for values in known[key].values()])
                 for key in known if key.startswith(f"{name},") and key.endswith("development")}  # fmt: skip
        assert tried[f"{name}, euler, guidance {best['guidance']:g}, development"] == max(tried.values())
    assert record["figures"] == figures and "RegenerateCrop" in (tmp_path / "whole" / "evidence.md").read_text("utf-8")


def test_two_comparisons_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--output", str(tmp_path), "--baselines", "--evidence"]) != 0
    assert "one at a time" in capsys.readouterr().err
