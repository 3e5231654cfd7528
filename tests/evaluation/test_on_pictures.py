"""Evaluation on shards of pictures: every figure is what a slow loop finds, and bad input leaves no file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from public_folders import NETWORK, WORDS, save_clip, save_inception, save_text_encoder, save_vae
from slow_metrics import edge_jump, frechet

from lazydiff import edit, load_checkpoint
from lazydiff.cli import main
from lazydiff.data.shards import DESCRIPTION, PICTURE, ShardHeader, describe_sample, picture_bytes, write_shard
from lazydiff.evaluation.metrics import ClipSimilarity
from lazydiff.evaluation.on_pictures import Asked, questions_of_shards
from lazydiff.evaluation.pictures_report import METHODS, PUBLISHED
from lazydiff.evaluation.regenerate import regenerate
from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.config import ModelConfig, Sampling
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.model.pretrained import load_text_encoder, load_vae, pretrained_fingerprint
from lazydiff.pipeline.decode import composite
from lazydiff.pipeline.fit import Crop

SIZE, PICTURES = 64, 5
FILES = {"evaluation.json", "evaluation.md", "pictures.png"}

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # in which people have Inception


def write(path: Path, numbers: range, size: int = SIZE, crop: bool = False) -> None:
    """A shard of noise with two holes in each picture."""
    with write_shard(path, ShardHeader(size, crop=crop)) as shard:
        for number in numbers:
            rng, masks = np.random.default_rng(number), np.zeros((2, size, size), bool)
            masks[0, 8:30, 10:40] = masks[1, 20:41, 5:50] = True
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            told = describe_sample(WORDS[0], [(WORDS[number % 3 + i], mask) for i, mask in enumerate(masks)])
            shard.add(f"picture-{number}", {PICTURE: picture_bytes(pixels), DESCRIPTION: told})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a user has: two shards, a pipeline, three checkpoints, Inception and CLIP."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("evaluation")
    text, latent = load_text_encoder(save_text_encoder(folder)), load_vae(save_vae(folder / "vae"))
    dense = replace(NETWORK, encoder_depth=0)
    networks = {"lazy": NETWORK, "image": dense, "crop": replace(dense, canvas=32)}
    for name, network in networks.items():
        config = ModelConfig(
            network, "iddpm", f"tiny-{name}", sampling=Sampling(steps=2), vae=pretrained_fingerprint(latent)
        )
        model = LazyDiffusion(config, text, latent)
        model.initialise(0)
        torch.nn.init.normal_(model.decoder.final_layer.linear.weight, std=0.02)
        save_checkpoint(model, folder / f"{name}.safetensors", torch.float32)
    for shard in range(2):
        write(folder / f"{shard}.tar", range(3 * shard, min(3 * shard + 3, PICTURES)))
    save_inception(folder / "inception.pt")
    save_clip(folder / "clip")
    return folder


def run(folder: Path, output: Path, **changes: str | None) -> int:
    """Arguments of the names; None leaves one out."""
    options = {
        "data": f"{folder}/{{0..1}}.tar", "checkpoint": f"{folder}/lazy.safetensors", "vae": f"{folder}",
        "text_encoder": f"{folder}", "baseline_image": f"{folder}/image.safetensors",
        "baseline_crop": f"{folder}/crop.safetensors", "inception": f"{folder}/inception.pt", "clip": f"{folder}/clip",
        "device": "cpu", "output": str(output), **changes,
    }  # fmt: skip
    named = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    return main(["evaluate", *(word for pair in named.items() for word in pair)])


@pytest.fixture(scope="module")
def written(folder: Path) -> Path:
    """What one evaluation has left."""
    assert run(folder, folder / "out") == 0
    return folder / "out"


def answer(method: str, model: LazyDiffusion, asked: Asked) -> torch.Tensor:
    if method == METHODS[0]:
        return edit(model, asked.canvas, asked.mask, asked.caption, [asked.seed])
    made = regenerate(model, asked.canvas, asked.mask, [asked.caption], [asked.seed], crop=method == METHODS[2])
    return composite(asked.canvas, made, asked.mask)


def in_bytes(image: torch.Tensor) -> torch.Tensor:
    return (image * 255).round().byte()


def test_figures_are_what_a_slow_loop_finds(folder: Path, written: Path) -> None:
    figures = json.loads((written / "evaluation.json").read_text())["figures"]
    asked = list(questions_of_shards([f"{folder}/{i}.tar" for i in range(2)], PICTURES, seed=1))
    text, latent = load_text_encoder(folder), load_vae(folder)
    script = torch.jit.load(str(folder / "inception.pt"))
    similarity = ClipSimilarity(folder / "clip", torch.device("cpu"))

    def features(images: list[torch.Tensor]) -> np.ndarray:
        return script(in_bytes(torch.cat(images)), return_features=True).detach().numpy()

    def score(images: list[torch.Tensor]) -> float:
        return np.mean([similarity(in_bytes(image)[0], one.caption) for image, one in zip(images, asked, strict=True)])

    def seam(images: list[torch.Tensor]) -> float:
        pixels = [in_bytes(image)[0].permute(1, 2, 0).numpy() for image in images]
        return np.mean([edge_jump(one, each.mask[0, 0].numpy() > 0) for one, each in zip(pixels, asked, strict=True)])

    real = [one.truth for one in asked]
    for method, name in zip(METHODS, ("lazy", "image", "crop"), strict=True):
        model, found = load_checkpoint(folder / f"{name}.safetensors", text, latent), figures[method]
        answers = [answer(method, model, one) for one in asked]
        views = [Crop.around(one.mask).of(made) for one, made in zip(asked, answers, strict=True)]
        assert found["changed_outside"] == 0 and found["seconds"] > 0
        assert found["clip"] == pytest.approx(score(answers), abs=1e-6)  # the same sums
        assert found["clip_hole"] == pytest.approx(score(views), abs=1e-6)
        # Features in float32, in batches of one and of all; torchmetrics takes eigenvalues where scipy takes a root.
        assert found["fid"] == pytest.approx(frechet(features(real), features(answers)), rel=1e-3, abs=1e-6)
        assert found["seam_ratio"] == pytest.approx(seam(answers) / seam(real), rel=1e-4)  # means in float32


def test_questions_are_drawn_and_nothing_leaks(folder: Path) -> None:
    urls = [f"{folder}/{i}.tar" for i in range(2)]
    first, second = (list(questions_of_shards(urls, PICTURES, seed)) for seed in (1, 2))
    for one in first:
        assert (one.canvas[:, :, one.mask[0, 0] > 0] == 0.5).all()
        assert torch.equal(one.canvas[:, :, one.mask[0, 0] == 0], one.truth[:, :, one.mask[0, 0] == 0])
    assert len({one.seed for one in first}) == PICTURES
    assert [one.caption for one in first] != [one.caption for one in second]  # other holes
    few = list(questions_of_shards(urls, 4, seed=1))
    assert [one.seed for one in few] == [one.seed for one in first[:4]]


def test_the_report_is_the_papers_table(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == FILES
    table = (written / "evaluation.md").read_text("utf-8")
    for method, (clip, fid) in PUBLISHED.items():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {method} |"))
        assert f"| *{clip:.2f}* | *{fid:.2f}* |" in row and "–" not in row
    assert "Table 1 of arXiv 2404.12382" in table and "no comparison" in table
    page = Image.open(written / "pictures.png")
    assert page.width == 5 * (3 * SIZE + 8) + 8  # hole, three answers, truth, three times their size
    assert page.height > PICTURES * 3 * SIZE


def test_what_is_not_given_is_a_dash(folder: Path, tmp_path: Path) -> None:
    left_out = dict.fromkeys(("baseline_image", "baseline_crop", "inception", "clip"))
    assert run(folder, tmp_path, samples="2", **left_out) == 0
    table = (tmp_path / "evaluation.md").read_text("utf-8")
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in table.splitlines() if line.startswith("| ")}
    assert rows["LazyDiffusion"][1:3] == ["–", "–"] and "–" not in rows["LazyDiffusion"][6:]
    assert set(rows["RegenerateCrop"][1:3] + rows["RegenerateCrop"][5:]) == {"–", "– |"}
    figures = json.loads((tmp_path / "evaluation.json").read_text())["figures"]
    assert list(figures) == ["LazyDiffusion"] and figures["LazyDiffusion"]["fid"] is None


def test_pictures_of_another_size_than_the_models(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "large.tar", range(2), size=88)
    assert run(folder, tmp_path / "out", data=f"{tmp_path}/large.tar", inception=None, clip=None) == 0
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    assert all(figures[method]["changed_outside"] == 0 for method in METHODS)


def test_the_shipped_model_answers_shards_too(tmp_path: Path) -> None:
    """It has a text encoder and a latent space of its own."""
    write(tmp_path / "0.tar", range(1), size=96)
    assert main(["evaluate", "--data", f"{tmp_path}/0.tar", "--output", f"{tmp_path}/out", "--device", "cpu"]) == 0
    assert "| LazyDiffusion | – |" in (tmp_path / "out" / "evaluation.md").read_text("utf-8")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": "none-*.tar"}, "there is no shard"),
        ({"data": "{folder}/none.tar"}, "there is no such shard"),
        ({"data": "{folder}/lazy.safetensors"}, "it is no tar"),
        ({"data": "{folder}/crops.tar"}, "its pictures are crops"),
        ({"samples": "6"}, "6 pictures: choose 2 to 5"),
        ({"samples": "1"}, "FID needs at least 2"),
        ({"samples": "0", "inception": None}, "0 pictures: choose 1 to 5"),
        ({"seed": "-1"}, "seed is -1"),
        ({"scenes": "3"}, "--scenes: not with --data"),
        ({"data": None}, "--baseline-image, --baseline-crop, --vae, --text-encoder, --inception, --clip: only with"),
        ({"inception": "{folder}/none.pt"}, "there is no such file"),
        ({"inception": "{folder}/lazy.safetensors"}, "no TorchScript network that turns pictures into features"),
        ({"clip": "{folder}/vae"}, "and clip is needed"),
        ({"vae": None}, "(--vae)"),
        ({"vae": "{folder}/other"}, "tiny-lazy was trained with another VAE"),
        ({"checkpoint": "{folder}/image.safetensors"}, "computes every token: it cannot be measured as LazyDiffusion"),
        ({"baseline_crop": "{folder}/lazy.safetensors"}, "hole alone: it cannot be measured as RegenerateCrop"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_no_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str | None], message: str
) -> None:
    if not (folder / "other").exists():
        save_vae(folder / "other")
        write(folder / "crops.tar", range(1), crop=True)
    given = {name: value and value.format(folder=folder) for name, value in changes.items()}
    assert run(folder, tmp_path / "out", **given) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error
    assert not list(tmp_path.glob("out/*"))


def test_a_stop_leaves_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **others: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lazydiff.evaluation.on_pictures.Tally.measured", interrupt)
    assert run(folder, tmp_path, samples="2") == 130
    assert not list(tmp_path.iterdir())
