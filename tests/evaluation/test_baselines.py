"""The comparison with the baselines measures what it says it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from samples import tiny_model
from torch import Tensor

from lazydiff.cache.kv_cache import KVSettings, dilate
from lazydiff.cli import main
from lazydiff.core.tokens import HoleTokens
from lazydiff.evaluation import evaluate_baselines
from lazydiff.evaluation.baselines import (
    EQUAL,
    JUDGED,
    SETTINGS,
    STEP_COUNTS,
    TOKENS,
    Setting,
    generated,
    headline,
    psnr,
    through_cache,
)
from lazydiff.evaluation.baselines_report import COLUMNS, LINES
from lazydiff.evaluation.evaluate import asked_tensors, blended
from lazydiff.evaluation.questions import distant_siblings, ordinary_questions, sibling_pair, stream
from lazydiff.evaluation.regenerate import regenerate
from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.decode import composite
from lazydiff.pipeline.fit import Crop

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(vocabulary: bytes) -> dict[str, LazyDiffusion]:
    presets = {"lazy": "small", "image": "small-image", "crop": "small-crop"}
    return {name: tiny_model("flow", vocabulary, preset) for name, preset in presets.items()}


# Questions


def test_distant_siblings_are_not_in_the_crop() -> None:
    """Recolour the siblings, and what the crop sees is the same picture; in other questions it is not always."""
    distant = distant_siblings(seed=3, scenes=12)
    rng, number, told = stream(3, 1), 0, 0
    while distant:
        question, recoloured = sibling_pair(rng, number)
        number += 1
        crop = Crop.around(torch.from_numpy(question.mask)[None])
        blind = torch.equal(*(crop.of(asked_tensors([one], CPU)[0]) for one in (question, recoloured)))
        if np.array_equal(question.image, distant[0].image):
            assert blind and question.caption == distant.pop(0).caption
        told += not blind
    assert told > 0


# Pictures


@pytest.mark.parametrize("name", ["image", "crop"])
def test_a_baselines_pictures_are_those_of_one_canvas_at_a_time(models: dict[str, LazyDiffusion], name: str) -> None:
    """One level of 255: float sums in another order, then rounded."""
    questions = ordinary_questions(seed=7, scenes=4)
    together = blended(questions, generated(models[name], Setting(name, name), questions).pictures)  # type: ignore[arg-type]
    for i, question in enumerate(questions):
        canvas, mask = asked_tensors([question], CPU)
        made = regenerate(models[name], canvas, mask, [question.caption], [i], crop=name == "crop")
        alone = composite(canvas, made, mask)[0].permute(1, 2, 0)
        assert np.abs(together[i].astype(int) - (alone * 255).round().int().numpy()).max() <= 1


def test_anchors_at_every_step_are_equal_to_the_dense_result(models: dict[str, LazyDiffusion]) -> None:
    """As equal as a batch is to its rows: sums in another order, some 1e-6 of the range, which is over 100 dB."""
    questions = ordinary_questions(seed=7, scenes=3)
    dense, every = (
        generated(models["image"], next(s for s in SETTINGS if s.name == name), questions)
        for name in ("dense", "every step")
    )
    assert (psnr(questions, every.pictures, dense.pictures) == EQUAL).all()
    assert (dense.steps == every.steps).all() and (dense.cost == 1).all() and (every.cost == 1).all()


def test_likeness_is_what_a_slow_loop_finds() -> None:
    questions = ordinary_questions(seed=7, scenes=3)
    one, other = torch.rand(2, 4, 3, 96, 96)
    other[2] = one[2]
    for i, value in enumerate(psnr(questions, one[:3], other)):
        if i == 2:
            assert value == EQUAL
        else:
            inside = torch.from_numpy(questions[i].mask)
            errors = [float((one[i, c][inside] - other[i, c][inside]).square().mean()) for c in range(3)]
            assert value == pytest.approx(-10 * np.log10(np.mean(errors)), abs=1e-3)


# Cost


@contextmanager
def counted_work(model: LazyDiffusion) -> Iterator[list[int]]:
    """Multiply-adds of each of the decoder's calls; all tokens are attended to."""
    work: list[int] = []
    forward, network = LazyDecoder.forward, model.config.network

    def count(self: LazyDecoder, x: Tensor, t: Tensor, text: object, hole: HoleTokens, *others: object) -> Tensor:
        work.append(network.macs(hole.count, network.text_length, TOKENS))
        return forward(self, x, t, text, hole, *others)  # type: ignore[arg-type]

    with patch.object(LazyDecoder, "forward", count):
        yield work


@pytest.mark.parametrize("reuse", ["", "prompt", "seed"])
def test_work_is_that_of_the_calls(models: dict[str, LazyDiffusion], reuse: str) -> None:
    model, steps = models["image"], models["image"].config.sampling.steps
    setting = Setting("two", kv=KVSettings(2, ring=1), reuse=reuse)  # type: ignore[arg-type]
    with counted_work(model) as work:
        given = setting, model.config.sampling, ordinary_questions(seed=7, scenes=2)
        _, recorded, cost = through_cache(model, *given, 1)
    full = model.config.network.macs(TOKENS, model.config.network.text_length)
    assert len(work) == (2 * steps if reuse else steps)
    last = work[-steps:]
    assert recorded == sum(one == full for one in last) == (0 if reuse else 2)
    assert cost == pytest.approx(sum(last) / (steps * full)) and 0 < cost < 1


@pytest.mark.parametrize("levels", [1, 2])
def test_work_of_a_recording_is_that_of_the_visible_tokens(models: dict[str, LazyDiffusion], levels: int) -> None:
    model, questions = models["image"], ordinary_questions(seed=7, scenes=2)
    sampling = replace(model.config.sampling, steps=4)
    with counted_work(model) as work:
        _, dense, cost = through_cache(model, Setting("", kv=KVSettings(levels=levels)), sampling, questions, 1)
    network = model.config.network
    hole = HoleTokens.from_mask(asked_tensors(questions, CPU)[1][1:], network.token)
    visible, lazily = TOKENS - hole.count, dilate(hole, 1).count
    each = network.macs(visible, network.text_length), network.macs(lazily, network.text_length, TOKENS)
    assert dense == 0 and len(work) == levels + 4
    whole = 4 * network.macs(TOKENS, network.text_length)
    assert cost == pytest.approx((levels * each[0] + 4 * each[1]) / whole) and 0 < cost < 1


def test_work_of_the_other_models_is_their_tokens(models: dict[str, LazyDiffusion]) -> None:
    questions = ordinary_questions(seed=7, scenes=2)
    lazy, crop = (generated(models[name], Setting(name, name), questions) for name in ("lazy", "crop"))  # type: ignore[arg-type]
    network = models["crop"].config.network
    assert np.allclose(crop.cost, network.macs(36, 32) / network.macs(144, 32))
    for question, cost in zip(questions, lazy.cost, strict=True):
        tokens = question.mask.reshape(12, 8, 12, 8).any((1, 3)).sum()
        assert cost == pytest.approx(network.macs(int(tokens), 32) / network.macs(144, 32))
    assert not lazy.steps.any() and not crop.steps.any()


# Reports


def test_figures_are_differences_to_the_dense_row() -> None:
    row = dict.fromkeys(JUDGED, 50.0)
    dense = {**row, "psnr": EQUAL, "sibling_colour": 90.0}
    rows = {
        **{f"dense{few}": dense for few in STEP_COUNTS.values()},
        "recorded": {**row, "psnr": 36.0, "sibling_colour": 90.0},
        "recorded, 8 steps": {**row, "psnr": 35.0, "sibling_colour": 88.5},
        "recorded, 4 steps": {**row, "psnr": 34.0, "sibling_colour": 91.0, "caption_blank": 47.0},
        "other visible noise": {**row, "psnr": 40.0},
        "automatic": {**row, "psnr": 31.0},
        "LazyDiffusion": {**row, "sibling_colour": 95.0},
        "RegenerateCrop": {**row, "sibling_colour": 12.5},
    }
    assert headline(rows) == {
        "psnr_20_steps": 36.0, "psnr_8_steps": 35.0, "psnr_4_steps": 34.0, "psnr_other_visible_noise": 40.0,
        "psnr_auto": 31.0, "sibling_colour_loss": 1.5, "caption_loss": 1.5, "lazy_sibling_colour": 95.0,
        "dense_sibling_colour": 90.0, "crop_sibling_colour": 12.5,
    }  # fmt: skip


def test_the_command_writes_table_plot_and_figures(
    models: dict[str, LazyDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"lazy": "lazy", "image": "regenerate-image", "crop": "regenerate-crop"}
    paths = {name: tmp_path / f"{file}.safetensors" for name, file in files.items()}
    for name, model in models.items():
        save_checkpoint(model, paths[name])
    monkeypatch.setattr("lazydiff.evaluation.laboratory.WEIGHTS", tmp_path)
    output = tmp_path / "out"
    command = ["evaluate", "--baselines", "--quick", "--scenes", "2", "--checkpoint", str(paths["lazy"])]
    assert main([*command, "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {"baselines.json", "baselines.md", "baselines.png"}
    record = json.loads((output / "baselines.json").read_text())
    assert set(record["figures"]) == set(LINES) and np.isfinite(list(record["figures"].values())).all()
    table = {row["name"]: row for row in record["table"]}
    assert list(table) == [setting.name for setting in SETTINGS]
    assert table["dense"]["figures"]["psnr"] == table["every step"]["figures"]["psnr"] == EQUAL
    assert set(table["automatic"]["figures"]) == set(COLUMNS) and "psnr" not in table["LazyDiffusion"]["figures"]
    assert table["automatic"]["scenes"] == 2 and table["every step"]["scenes"] == 1
    report = (output / "baselines.md").read_text("utf-8")
    assert all(f"`{figure}`" in report for figure in LINES) and all(f"| {name} " in report for name in table)
    with Image.open(output / "baselines.png") as picture:
        picture.verify()


def test_an_interrupted_comparison_leaves_no_files(
    models: dict[str, LazyDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lazydiff.evaluation.baselines.through_cache", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate_baselines(models, tmp_path, scenes=1, quick=True, progress=False)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compared_is_told(models: dict[str, LazyDiffusion], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 scenes"):
        evaluate_baselines(models, tmp_path, scenes=0)
    with pytest.raises(ValueError, match="cannot be measured as the model of kind “crop”"):
        evaluate_baselines({**models, "crop": models["image"]}, tmp_path)
