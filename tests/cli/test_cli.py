"""The command line: its forms stay as they are, and bad input ends in one clear line and no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import tiny_model

from lazydiff.cli import main
from lazydiff.cli.demo import stories
from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.lazydiffusion import LazyDiffusion


@pytest.fixture
def folder(model: LazyDiffusion, tmp_path: Path) -> Path:
    """A checkpoint, a picture, a mask and a sketch."""
    save_checkpoint(model, tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in ("in", "sketch"):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((96, 96), np.uint8)
    mask[20:50, 30:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def arguments(folder: Path, **changes: list[str] | None) -> list[str]:
    options: dict[str, list[str] | None] = {
        "image": [f"{folder}/in.png"], "mask": [f"{folder}/mask.png"], "prompt": ["a red tree"], "steps": ["2"],
        "checkpoint": [f"{folder}/model.safetensors"], "output": [f"{folder}/out"], **changes,
    }  # fmt: skip
    return ["edit", *(word for name, value in options.items() if value for word in (f"--{name}", *value))]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask": None, "box": ["30", "20", "30", "30"]},
        {"seed": ["1", "2", "3"], "guidance": ["4.5"], "sampler": ["dpmpp"]},
        {"sketch": ["SKETCH"], "strength": ["0.5"]},
    ],
)
def test_edit_writes_one_picture_per_seed(folder: Path, changes: dict[str, list[str] | None]) -> None:
    changes = {k: [f"{folder}/sketch.png"] if v == ["SKETCH"] else v for k, v in changes.items()}
    assert main(arguments(folder, **changes)) == 0
    seeds = changes.get("seed") or ["0"]
    assert sorted(p.name for p in (folder / "out").iterdir()) == sorted(f"edit-{seed}.png" for seed in seeds)
    before = pixels(folder / "in.png")
    for seed in seeds:
        after = pixels(folder / "out" / f"edit-{seed}.png")
        inside = np.zeros((96, 96), bool)
        inside[20:50, 30:60] = True
        assert (after[~inside] == before[~inside]).all() and (after[inside] != before[inside]).any()


@pytest.mark.parametrize("preset", ["small-image", "small-crop"])
def test_a_baseline_edits_nothing(
    folder: Path, preset: str, vocabulary: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tiny_model("flow", vocabulary, preset), folder / "baseline.safetensors")
    assert main(arguments(folder, checkpoint=[f"{folder}/baseline.safetensors"])) == 2
    assert "it is a baseline of the evaluation" in capsys.readouterr().err
    assert not list((folder / "out").iterdir())


def write(path: Path, mode: str, size: tuple[int, int]) -> list[str]:
    Image.new(mode, size).save(path)
    return [str(path)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: {"image": write(f / "clear.png", "RGBA", (96, 96))}, "not an opaque RGB picture"),
        (lambda f: {"image": write(f / "small.png", "RGB", (4, 4)), "mask": write(f / "m.png", "L", (4, 4))}, "token"),
        (lambda f: {"mask": write(f / "other.png", "L", (64, 96))}, "mask is 64×96"),
        (lambda f: {"image": [str(f / "none.png")]}, "no such file"),
        (lambda f: {"image": [str(f / "model.safetensors")]}, "not a picture"),
        (lambda f: {"mask": None, "box": ["90", "0", "30", "30"]}, "does not lie on the canvas"),
        (lambda f: {"mask": None, "box": ["0", "0", "0", "30"]}, "does not lie on the canvas"),
        (lambda f: {"steps": ["0"]}, "0 steps"),
        (lambda f: {"steps": ["99999"]}, "99999 steps"),
        (lambda f: {"guidance": ["nan"]}, "guidance"),
        (lambda f: {"guidance": ["-3"]}, "guidance"),
        (lambda f: {"prompt": ["word " * 500]}, "shorten"),
        (lambda f: {"checkpoint": [str(f / "in.png")]}, "not a whole safetensors file"),
        (lambda f: {"output": [str(f / "in.png" / "out")]}, "cannot write into the folder"),
        (lambda f: {"sketch": write(f / "s.png", "RGB", (9, 9))}, "sketch is 9×9"),
    ],
)
def test_bad_input_is_one_clear_line_and_no_file(
    folder: Path, capsys: pytest.CaptureFixture[str], make: object, message: str
) -> None:
    assert main(arguments(folder, **make(folder))) == 2  # type: ignore[operator]
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(folder.glob("out/*"))


def test_an_empty_picture_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty.png").write_bytes(b"")
    assert main(arguments(folder, image=[f"{folder}/empty.png"])) == 2
    assert "not a picture" in capsys.readouterr().err


def test_stop_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **others: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lazydiff.model.decoder.LazyDecoder.forward", interrupt)
    assert main(arguments(folder)) == 130
    assert not list((folder / "out").iterdir())


def test_info_says_what_a_checkpoint_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--checkpoint", f"{folder}/model.safetensors"]) == 0
    text = capsys.readouterr().out
    assert "96×96 px" in text and "tiny" in text and "parameters" in text


def test_demo_tells_its_stories(folder: Path) -> None:
    command = ["demo", "--checkpoint", f"{folder}/model.safetensors", "--steps", "1", "--output", f"{folder}/demo"]
    assert main(command) == 0
    for story in stories(96):
        assert len(story.strokes) >= 5
        states = [pixels(folder / "demo" / f"{story.name}-{i}.png") for i in range(len(story.strokes) + 1)]
        for stroke, before, after in zip(story.strokes, states, states[1:], strict=False):
            x, y, width, height = (3 * side for side in stroke.box)
            outside = np.ones(before.shape[:2], bool)
            outside[y : y + height, x : x + width] = False
            assert (before[outside] == after[outside]).all() and (before != after).any()
    assert pixels(folder / "demo" / "storyboard.png").ndim == 3
    assert pixels(folder / "demo" / "time-per-step.png").ndim == 3
