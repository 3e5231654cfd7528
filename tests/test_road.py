"""The road is whole: prepare, train, evaluate, edit, by the commands alone, on real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from road import KINDS, PICTURES, Road, prepare_and_train, set_out

from lazydiff.model.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    road = set_out(tmp_path_factory.mktemp("road"))
    prepare_and_train(road, *KINDS)
    return road


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_training_ends_in_a_model_with_its_log_and_pictures(road: Road, kind: str) -> None:
    config, _ = read_checkpoint(road.checkpoint(kind))
    assert config.network == KINDS[kind] and config.vae and config.text_encoder
    folder = Path(road.checkpoint(kind)).parent
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + 4
    with Image.open(folder / "samples-000004.png") as grid:
        assert np.asarray(grid).std() > 10
    report = json.loads((road.folder / f"shards-{kind}" / "report.json").read_text())
    assert report["pictures"] == PICTURES and not report["refused"]


def test_models_are_measured_as_the_papers(road: Road) -> None:
    output = road.folder / "evaluation"
    road.do(
        "evaluate", "--data", road.shards, "--checkpoint", road.checkpoint("lazy"), *road.parts,
        "--baseline-image", road.checkpoint("image"), "--baseline-crop", road.checkpoint("crop"),
        "--inception", road.folder / "inception.pt", "--clip", road.folder / "clip", "--samples", 3, "--output", output,
    )  # fmt: skip
    figures = json.loads((output / "evaluation.json").read_text())["figures"]
    assert set(figures) == {"LazyDiffusion", "RegenerateImage", "RegenerateCrop"}
    for row in figures.values():
        assert row["changed_outside"] == 0 and row["fid"] > 0 and row["clip"] is not None and row["seconds"] > 0
    assert "| LazyDiffusion |" in (output / "evaluation.md").read_text() and (output / "pictures.png").is_file()


def test_the_model_edits(road: Road) -> None:
    picture = road.folder / "pictures" / "0.png"
    road.do(
        "edit", "--checkpoint", road.checkpoint("lazy"), *road.parts, "--image", picture, "--box", 20, 20, 30, 24,
        "--prompt", "two blue birds", "--seed", 0, 1, "--output", road.folder / "edits",
    )  # fmt: skip
    before = np.asarray(Image.open(picture))
    first, second = (np.asarray(Image.open(road.folder / "edits" / f"edit-{seed}.png")) for seed in (0, 1))
    inside = np.zeros(before.shape[:2], bool)
    inside[20:44, 20:50] = True
    assert (first[~inside] == before[~inside]).all() and (first[inside] != before[inside]).any()
    assert (first[inside] != second[inside]).any()


def test_the_road_is_walked_again_for_nothing(road: Road, capsys: pytest.CaptureFixture[str]) -> None:
    """What is finished is not made again."""
    made = {path: path.stat().st_mtime_ns for path in road.folder.glob("shards-lazy/*.tar")}
    log = (road.folder / "run-lazy" / "log.csv").read_text()
    prepare_and_train(road, "lazy")
    assert made == {path: path.stat().st_mtime_ns for path in road.folder.glob("shards-lazy/*.tar")}
    assert (road.folder / "run-lazy" / "log.csv").read_text() == log
