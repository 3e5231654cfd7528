"""The large world's evaluation judges rightly, at any size, and writes what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import tiny_model

from lazydiff.evaluation import evaluate_world, photographs, world_evaluation
from lazydiff.evaluation.evaluate import SEED
from lazydiff.evaluation.item_fit import Pose, best_pose, measure_fit, scene_fittable, world_fittable
from lazydiff.evaluation.photographs import PLACES, biharmonic, photograph, telea
from lazydiff.evaluation.questions import object_questions
from lazydiff.evaluation.world_evaluation import WORLD_LINES, WORLD_PERCENTAGES
from lazydiff.evaluation.world_judge import WorldJudge, colour_name, place_window
from lazydiff.evaluation.world_questions import WorldQuestion, world_questions
from lazydiff.model.config import PRESETS
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.world import HUES, draw_scene, item_captions, random_hue

SIZE, COUNT = 128, 4


@pytest.fixture(scope="module")
def asked() -> dict[str, list[WorldQuestion]]:
    return world_questions(seed=3, scenes=COUNT, size=SIZE)


@pytest.fixture(scope="module")
def judge() -> WorldJudge:
    return WorldJudge(SEED, scenes=20)


@pytest.fixture
def large(vocabulary: bytes) -> LazyDiffusion:
    """Like the 512 px model, with a canvas of 128 px."""
    return tiny_model("wiener", vocabulary, replace(PRESETS["lazydiffusion-512"], canvas=SIZE))


def test_questions_ask_for_what_is_not_shown(asked: dict[str, list[WorldQuestion]]) -> None:
    for kind, questions in asked.items():
        for question in questions:
            assert question.image.shape == (SIZE, SIZE, 3) and question.mask.any()
            assert (question.canvas[question.mask] == 128).all()
            if kind != "removal":
                assert (question.image == draw_scene(question.scene, SIZE)).all()
                if kind in ("sibling", "several_kinds"):
                    assert question.caption in sum(item_captions(question.scene, question.target).values(), [])
                    assert question.placed.item.name not in question.caption
    for first, swapped in zip(asked["sibling"], asked["swapped"], strict=True):
        assert (first.mask == swapped.mask).all() and swapped.former == first.placed.item.name
        assert swapped.placed.item.name != swapped.former and swapped.caption == "another one"


def test_the_same_questions_at_every_size_from_512_on() -> None:
    usual, larger = (world_questions(seed=3, scenes=2, size=size) for size in (512, 768))
    for kind, questions in larger.items():
        assert [question.caption for question in questions] == [question.caption for question in usual[kind]]


def test_colours_of_real_renders_are_found(asked: dict[str, list[WorldQuestion]]) -> None:
    """By rule alone; of the kinds a classifier of two minutes' training judges, which is not tried here."""
    questions = sum((asked[kind] for kind in ("sibling", "swapped", "caption_against_siblings", "several_kinds")), [])
    found = [colour_name(question.image, question) == question.placed.item.name for question in questions]
    assert np.mean(found) >= 0.85  # a thing may be half hidden, and a pattern as bright as its ground


def test_another_colour_and_the_bare_ground_are_told(asked: dict[str, list[WorldQuestion]]) -> None:
    names, rng = list(HUES), np.random.default_rng(0)
    for question in asked["sibling"]:
        item = question.placed.item
        other = names[(names.index(item.name) + 3) % len(names)]
        items = list(question.scene.items)
        items[question.target] = replace(
            question.placed, item=replace(item, name=other, colour=random_hue(rng, other))
        )
        assert colour_name(draw_scene(replace(question.scene, items=tuple(items)), SIZE), question) != item.name
        assert colour_name(draw_scene(question.scene, SIZE, without=question.target), question) != item.name


def test_what_is_left_of_an_item_is_not_clean(asked: dict[str, list[WorldQuestion]], judge: WorldJudge) -> None:
    """Whatever the classifier says: the ground must be the true one."""
    for question in asked["removal"]:
        assert not judge.clean(question, draw_scene(question.scene, SIZE))


def test_a_window_shows_the_box_with_its_surroundings(asked: dict[str, list[WorldQuestion]]) -> None:
    question = asked["caption_blank"][0]
    window = place_window(question.image, question.placed).astype(int)
    bare = place_window(draw_scene(question.scene, SIZE, without=0), question.placed)
    changed = np.abs(window - bare).max(-1) > 8
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert window.shape == (48, 48, 3) and np.ptp(rows) > 20 and np.ptp(columns) > 12


# Fits


@pytest.mark.parametrize("pose", [Pose(3.0, -2.0, 1.1), Pose(-4.0, 1.0, 0.9, True)])
def test_a_moved_render_is_found(asked: dict[str, list[WorldQuestion]], pose: Pose) -> None:
    question = asked["caption_blank"][1]
    fittable = world_fittable(question.scene, question.target, SIZE)
    assert (fittable.draw(Pose()) == question.image).all()
    everywhere = np.ones((SIZE, SIZE), bool)
    moved = fittable.draw(pose)
    found = best_pose(moved, everywhere, fittable)
    assert abs(found.right - pose.right) < 1 and abs(found.down - pose.down) < 1 and found.flipped == pose.flipped
    fit = measure_fit(moved, everywhere, fittable)
    assert fit.psnr > 35 and fit.stray < 0.01  # half a pixel is the finest step


def test_stray_is_what_neither_thing_nor_ground_has(asked: dict[str, list[WorldQuestion]]) -> None:
    question = asked["caption_blank"][2]
    fittable = world_fittable(question.scene, question.target, SIZE)
    clean = measure_fit(question.image, question.mask, fittable)
    assert clean == (60, 60, 0)
    spoilt, rows = question.image.copy(), np.argwhere(question.mask)
    some = rows[: len(rows) // 10]
    spoilt[some[:, 0], some[:, 1]] = (255, 0, 255)
    fit = measure_fit(spoilt, question.mask, fittable)
    assert fit.stray == pytest.approx(len(some) / len(rows)) and fit.psnr < 30
    assert measure_fit(fittable.ground, question.mask, fittable).stray == 0
    assert measure_fit(fittable.ground, question.mask, fittable).item_psnr < 40


def test_objects_of_the_small_world_fit_themselves() -> None:
    for question in object_questions(5, 3)["sibling"]:
        fit = measure_fit(question.image, question.mask, scene_fittable(question))
        assert fit.psnr > 45 and fit.stray == 0  # bodies over a neighbour's shadow are rounded twice


# Photographs


def test_holes_in_photographs_are_of_5_to_15_percent() -> None:
    pytest.importorskip("skimage")
    shares = [place.mask(256).mean() for place in PLACES]
    assert len(PLACES) == len({place.name for place in PLACES}) == 10
    assert 0.05 <= min(shares) and max(shares) <= 0.15
    assert photograph("rocket.jpg", 64).shape == (64, 64, 3)


@pytest.mark.parametrize("method", [telea, biharmonic])
def test_other_methods_continue_a_gradient(method: object) -> None:
    pytest.importorskip("cv2" if method is telea else "skimage")
    ramp = np.repeat(np.linspace(40, 200, 48, dtype=np.float32)[None], 48, 0)[..., None].repeat(3, 2).astype(np.uint8)
    mask = np.zeros((48, 48), bool)
    mask[16:32, 16:32] = True
    filled = method(np.where(mask[..., None], np.uint8(128), ramp), mask)  # type: ignore[operator]
    assert (filled[~mask] == ramp[~mask]).all()
    assert np.abs(filled[mask].astype(int) - ramp[mask]).mean() < 6


# Whole evaluations


def test_evaluate_world_writes_every_figure(
    large: LazyDiffusion, judge: WorldJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_evaluation, "WorldJudge", lambda *_: judge)
    monkeypatch.setattr(world_evaluation, "PAGE", 2)
    monkeypatch.setattr(photographs, "PLACES", PLACES[:1])
    monkeypatch.setattr(world_evaluation, "PLACES", PLACES[:1])
    figures = evaluate_world(large, tmp_path, scenes=2, quick=True, progress=False)
    for figure in WORLD_PERCENTAGES:
        assert {figure, f"{figure}_ceiling", f"{figure}_autoencoder"} <= figures.keys()
    measured = {figure for figure in WORLD_LINES if not figure.startswith("photo_")}
    assert measured <= figures.keys() and np.isfinite(list(figures.values())).all()
    assert figures["fit_psnr"] < figures["fit_psnr_autoencoder"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["figures"] == figures
    report = (tmp_path / "evaluation.md").read_text("utf-8")
    assert all(f"`{figure}`" in report for figure in measured) and "2 for the fit" in report
    for name in ("page.webp", "grid.png"):
        with Image.open(tmp_path / name) as picture:
            picture.verify()


def test_through_the_autoencoder_only_the_hole_changes(
    large: LazyDiffusion, asked: dict[str, list[WorldQuestion]]
) -> None:
    questions = asked["sibling"][:2]
    coded = world_evaluation.through_autoencoder(large, questions)
    for question, picture in zip(questions, coded, strict=True):
        assert (picture[~question.mask] == question.image[~question.mask]).all()
        assert (picture != question.image).any()
    assert torch.is_grad_enabled()
