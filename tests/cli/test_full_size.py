"""A checkpoint whose VAE and text encoder are public ones, from the command line: their folders are named and read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from public_folders import NETWORK, save_text_encoder, save_vae

from lazydiff.cli import main
from lazydiff.cli.demo import stories
from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.config import SHIPPED, ModelConfig, Sampling
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.model.pretrained import load_text_encoder, load_vae, pretrained_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, a checkpoint that knows it, one that knows no part, and a picture."""
    torch.manual_seed(0)
    folder = save_text_encoder(tmp_path_factory.mktemp("pipeline"))
    text, latent = load_text_encoder(folder), load_vae(save_vae(folder / "vae").parent)
    names = {"vae": pretrained_fingerprint(latent), "text_encoder": pretrained_fingerprint(text)}
    for name, known in (("model", names), ("unknown", {})):
        config = ModelConfig(NETWORK, "iddpm", "tiny", sampling=Sampling(steps=2), **known)
        model = LazyDiffusion(config, text, latent)
        model.initialise(0)
        torch.nn.init.normal_(model.decoder.final_layer.linear.weight, std=0.02)
        save_checkpoint(model, folder / f"{name}.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 72, 3), dtype=np.uint8)).save(folder / "in.png")
    return folder


def run(folder: Path, output: Path, *more: str, command: str = "edit", checkpoint: str = "model") -> int:
    edit = ["--image", f"{folder}/in.png", "--box", "20", "16", "30", "20", "--prompt", "a red house"]
    return main(
        [command, "--checkpoint", f"{folder}/{checkpoint}.safetensors", *(edit if command == "edit" else []), *more]
        + (["--output", str(output)] if command != "info" else [])
    )


def parts(folder: Path) -> list[str]:
    return ["--vae", str(folder), "--text-encoder", str(folder)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_edit(folder: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path, *parts(folder), "--dtype", dtype) == 0
    before, after = (np.asarray(Image.open(path)) for path in (folder / "in.png", tmp_path / "edit-0.png"))
    inside = np.zeros(before.shape[:2], bool)
    inside[16:36, 20:50] = True
    assert (after[~inside] == before[~inside]).all() and (after[inside] != before[inside]).any()
    assert "note:" not in capsys.readouterr().err


def test_another_vae_than_in_training_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_vae(tmp_path / "vae")
    names = [pretrained_fingerprint(load_vae(each)) for each in (folder, other)]
    assert run(folder, tmp_path, "--vae", str(other), "--text-encoder", str(folder)) == 0
    error = capsys.readouterr().err
    assert f"note: tiny was trained with another VAE: {names[0]}, and this one is {names[1]}" in error
    assert run(folder, tmp_path, "--vae", str(other), "--text-encoder", str(folder), checkpoint="unknown") == 0
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, message",
    [
        (lambda f: [], "name the folders of those it was trained with (--text-encoder and --vae)"),
        (lambda f: ["--vae", str(f)], "it was trained with (--text-encoder)"),
        (lambda f: ["--vae", f"{f}/none", "--text-encoder", str(f)], "there is no such folder"),
        (lambda f: ["--vae", f"{f}/text_encoder", "--text-encoder", str(f)], "AutoencoderKL is needed"),
        (lambda f: ["--vae", str(f), "--text-encoder", f"{f}/vae"], "t5 is needed"),
        (lambda f: ["--vae", str(save_vae(f / "wide", latent_channels=16)), "--text-encoder", str(f)],
         "its latents have 4 channels per 8 px, and the VAE's 16 channels per 8 px"),
    ],
)  # fmt: skip
def test_missing_and_wrong_folders_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: object, message: str
) -> None:
    assert run(folder, tmp_path, *given(folder)) == 2  # type: ignore[operator]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not list(tmp_path.iterdir())


def test_a_model_with_parts_of_its_own_takes_no_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--checkpoint", str(SHIPPED), "--vae", str(folder), "--output", str(tmp_path)]) == 2
    assert "of its own: leave out --vae" in capsys.readouterr().err


def test_info_needs_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, folder, command="info") == 0
    text, config = capsys.readouterr().out, pretrained_fingerprint(load_vae(folder))
    assert "64×64 px, 4×4 tokens of 16 px" in text and f"4 channels, one cell per 8 px, of the VAE {config}" in text
    assert run(folder, folder, command="info", checkpoint="unknown") == 0
    assert "not written down" in capsys.readouterr().out


def test_demo_draws_its_stories_at_the_models_size(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, *parts(folder), "--steps", "1", command="demo") == 0
    for story in stories(64):
        for number in range(len(story.strokes) + 1):
            assert Image.open(tmp_path / f"{story.name}-{number}.png").size == (256, 256)  # four times
    assert {"storyboard.png", "time-per-step.png"} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("side", [64, 96, 1000, 1024])
def test_a_scaled_story_covers_the_canvas_as_before(side: int) -> None:
    for stroke, one in zip(stories(side)[0].strokes, stories()[0].strokes, strict=True):
        x, y, width, height = stroke.box
        left, top, across, down = one.box
        edges, expected = (x, y, x + width, y + height), (left, top, left + across, top + down)
        assert all(abs(edge - side * place / 512) <= 0.5 for edge, place in zip(edges, expected, strict=True))
    sky, grass = (stroke.box for stroke in stories(side)[0].strokes[:2])
    assert sky[3] == grass[1] and sky[3] + grass[3] == side  # no line between them, nothing beyond


def test_a_checkpoint_remembers_its_parts(folder: Path) -> None:
    from lazydiff.model.checkpoint import read_settings

    config, own = read_settings(folder / "model.safetensors")
    assert not own and config.vae == pretrained_fingerprint(load_vae(folder))
    assert read_settings(folder / "unknown.safetensors")[0].vae is None
    for wrong in ("", "not hexadecimal", 3):
        with pytest.raises(ValueError, match="no fingerprint"):
            replace(config, vae=wrong).check()  # type: ignore[arg-type]
