"""What a training begins with: PixArt-α in any of its layouts, and shards that suit the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from public_folders import NETWORK, TEXT_WIDTH, save_pixart
from safetensors.torch import load_file, save_file

from lazydiff.data.batch import Example
from lazydiff.data.shards import LatentOrigin, ShardError, ShardHeader, TextOrigin
from lazydiff.model.config import ModelConfig
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.model.pixart_weights import from_pixart, to_pixart
from lazydiff.training.config import TrainingConfig
from lazydiff.training.start import Material, initialise_decoder, new_model
from lazydiff.training.state import newest_state
from lazydiff.training.train import train

SIDE = NETWORK.canvas
HEADER = ShardHeader(SIDE, 9, False, LatentOrigin("0" * 16, 8, 4), TextOrigin("1" * 16, TEXT_WIDTH, 120))


class Prepared:
    """Random latents and features, as shards have them."""

    name = "random"

    def __init__(self, header: ShardHeader = HEADER):
        self.header = header

    def captions(self) -> list[str]:
        return ["a caption"]

    def pictures(self, number: int, seed: int) -> np.ndarray:
        return np.zeros((2, SIDE, SIDE, 3), np.uint8)

    def read(self, reader: int, readers: int, start: int) -> Iterator[Example]:
        while True:
            rng = np.random.default_rng([reader, start])
            mask = np.zeros((SIDE, SIDE), bool)
            mask[: 16 * (1 + start % 3), :16] = True
            latents = rng.standard_normal((3, 4, SIDE // 8, SIDE // 8)).astype(np.float16)
            text, empty = (rng.standard_normal((n, TEXT_WIDTH)).astype(np.float16) for n in (3, 1))
            yield Example(start, mask, "a caption", None, latents, text, empty)
            start += 1


@pytest.fixture
def config() -> TrainingConfig:
    model = ModelConfig(NETWORK, "iddpm", "tiny")
    return TrainingConfig(model, steps=2, batch=2, noise_levels=1, precision="no", workers=0, learning_rate=1e-4)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "original": lambda folder: save_pixart(folder / "PixArt.safetensors"),
    "original, of torch.save": lambda folder: resaved(folder, lambda state: {"state_dict": state, "epoch": 3}, "pth"),
    "comfy": lambda folder: save_pixart(folder / "PixArt.safetensors", "comfy"),
    "transformer's folder": lambda folder: save_pixart(folder / "p", "diffusers").parent,
    "pipeline's folder": lambda folder: save_pixart(folder / "p", "diffusers").parents[1],
    "diffusers, bin": lambda folder: resaved(folder, lambda state: to_pixart(state, "diffusers"), "bin").parent,
    "in several files": lambda folder: split(save_pixart(folder / "p", "diffusers")).parent,
    "their index": lambda folder: split(save_pixart(folder / "p", "diffusers")),
}


def resaved(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], suffix: str) -> Path:
    """By torch.save."""
    state = load_file(save_pixart(folder / "PixArt.safetensors"))
    (folder / "saved").mkdir()
    torch.save(change(state), folder / "saved" / f"PixArt.{suffix}")
    return folder / "saved" / f"PixArt.{suffix}"


def split(path: Path) -> Path:
    """Into two files and their index, as diffusers cuts large models."""
    state = load_file(path)
    names = sorted(state)
    parts = {f"part-{i}.safetensors": names[i::2] for i in range(2)}
    for file, some in parts.items():
        save_file({name: state[name] for name in some}, path.with_name(file))
    path.unlink()
    index = path.with_name(path.name + ".index.json")
    index.write_text(json.dumps({"weight_map": {name: file for file, some in parts.items() for name in some}}))
    return index


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_decoder_begins_as_pixart_in_any_layout(config: TrainingConfig, layout: str, tmp_path: Path) -> None:
    """With the added layer at [I | 0], and an encoder of its own."""
    torch.manual_seed(3)
    path = LAYOUTS[layout](tmp_path)
    torch.manual_seed(3)
    published = from_pixart(load_file(save_pixart(tmp_path / "again.safetensors")))
    model, fresh = (new_model(config, Prepared()) for _ in range(2))
    initialise_decoder(model, path)
    decoder, width = model.decoder.state_dict(), NETWORK.width
    assert all(torch.equal(decoder[name], value) for name, value in published.items())
    assert decoder.keys() - published.keys() == {"ctx_fuse.weight", "ctx_fuse.bias"}
    assert torch.equal(decoder["ctx_fuse.weight"], torch.eye(width, 2 * width)) and not decoder["ctx_fuse.bias"].any()
    encoder = fresh.encoder.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in model.encoder.state_dict().items())


def test_a_fingerprint_is_of_the_weights_not_of_the_file(config: TrainingConfig, tmp_path: Path) -> None:
    found = []
    for seed, layout in ((3, "original"), (3, "pipeline's folder"), (4, "original")):
        torch.manual_seed(seed)
        (folder := tmp_path / str(len(found))).mkdir()
        path = LAYOUTS[layout](folder)
        found.append(initialise_decoder(new_model(config, Prepared()), path))
    assert found[0] == found[1] != found[2]


def test_a_training_goes_on_with_the_weights_that_it_began_with(config: TrainingConfig, tmp_path: Path) -> None:
    """It needs not be given them again, and may not be given others."""
    first, second = save_pixart(tmp_path / "first.safetensors"), save_pixart(tmp_path / "second.safetensors")

    def run(output: str, initialise: Path | None) -> bytes:
        return train(config, tmp_path / output, Material(Prepared(), initialise)).read_bytes()

    model = run("run", first)
    assert run("run", None) == run("run", first) == model
    with pytest.raises(ValueError, match="initialise [0-9a-f]{16} there and [0-9a-f]{16} here"):
        run("run", second)
    assert newest_state(tmp_path / "run") and run("fresh", None) != model
    with pytest.raises(ValueError, match="initialise None there and [0-9a-f]{16} here"):
        run("fresh", first)


def broken(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str = "PixArt.pth") -> Path:
    path = save_pixart(folder / "PixArt.safetensors")
    torch.save(change(load_file(path)), folder / name)
    path.unlink()
    return folder / name


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def text(folder: Path, name: str, words: str) -> Path:
    (folder / name).write_text(words)
    return folder / name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "missing.pth", "missing.pth: there is no such file"),
        (empty, r"empty: there are no weights in it \(\*.safetensors, "),
        (lambda folder: save_pixart(folder / "p" / "a.x").parent, "there are no weights"),
        (lambda folder: text(folder, "a.safetensors", "no weights"), "a.safetensors: its weights cannot be read"),
        (lambda folder: text(folder, "a.pth", "no weights"), "a.pth is no file of weights"),
        (lambda folder: text(folder, "a.index.json", "[]"), "a.index.json is no index of weights"),
        (
            lambda folder: text(folder, "a.index.json", '{"weight_map": {"x": "../gone.safetensors"}}'),
            "gone.safetensors: there is no such file",
        ),
        (lambda folder: broken(folder, lambda state: [1, 2]), "PixArt.pth holds a list, no weights by name"),
        (lambda folder: broken(folder, lambda state: {"a": torch.ones(1)}), "PixArt.pth: not a PixArt-α state dict"),
        (lambda folder: broken(folder, lambda state: {**state, "a": Path("x")}), "PixArt.pth"),
        (
            lambda folder: save_pixart(folder / "a.safetensors", network=replace(NETWORK, width=48)),
            "does not fit this decoder: .* parameters differ",
        ),
        (
            lambda folder: broken(folder, lambda state: {**state, "t_block.1.bias": state["t_block.1.bias"] / 0}),
            "t_block.1.bias has values that are not numbers",
        ),
        (lambda folder: (broken(folder, dict), broken(folder, dict, "b.pth"))[0].parent, "has 2 files .*.pth: name"),
    ],
)  # fmt: skip
def test_what_is_no_pixart_is_told_before_work_begins(
    config: TrainingConfig, make: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    (tmp_path / "given" / "p").mkdir(parents=True)
    path = make(tmp_path / "given")
    with pytest.raises(ValueError, match=words):
        train(config, tmp_path / "run", Material(Prepared(), path))
    assert not list((tmp_path / "run").glob("state-*")) and not (tmp_path / "run" / "model.safetensors").exists()


# Shards


def test_a_model_of_shards_is_its_networks_alone(config: TrainingConfig) -> None:
    """And knows what the shards were prepared with."""
    model = new_model(config, Prepared())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"encoder", "decoder"}
    assert (model.config.vae, model.config.text_encoder) == ("0" * 16, "1" * 16)
    pictures = new_model(config, Prepared(replace(HEADER, vae=None, text=None)))
    assert isinstance(pictures, LazyDiffusion) and pictures.config.words == ("a", "caption")
    assert {name.split(".")[0] for name, _ in pictures.named_parameters()} == {"encoder", "decoder", "text"}


@pytest.mark.parametrize(
    ("changes", "crop", "words"),
    [
        ({"size": 96}, False, "96, the model's: 64"),
        ({"vae": None}, False, "text features and no latents"),
        ({"text": None}, False, "latents and no text features"),
        ({"crop": True}, False, "train a configuration with crop = true"),
        ({}, True, "crop is true, and the shards have latents of whole pictures"),
        ({"vae": LatentOrigin("0" * 16, 8, 16)}, False, "latents' channels: 16, the model's: 4"),
        ({"text": TextOrigin("1" * 16, 20, 120)}, False, "text features' width: 20, the model's: 16"),
    ],
)
def test_shards_that_do_not_suit_the_model_are_told(
    config: TrainingConfig, changes: dict[str, object], crop: bool, words: str
) -> None:
    header = replace(HEADER, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        new_model(replace(config, crop=crop), Prepared(header))


def test_other_shards_are_refused_where_a_training_goes_on(config: TrainingConfig, tmp_path: Path) -> None:
    train(config, tmp_path, Material(Prepared()))
    other = Prepared(replace(HEADER, vae=LatentOrigin("2" * 16, 8, 4)))
    with pytest.raises(ValueError, match="data.vae.fingerprint 0000000000000000 there and 2222222222222222 here"):
        train(config, tmp_path, Material(other))


class Damaged(Prepared):
    def read(self, reader: int, readers: int, start: int) -> Iterator[Example]:
        yield from islice(super().read(reader, readers, start), 5)
        raise ShardError("b.tar: it is not whole")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_told_in_one_line(config: TrainingConfig, workers: int, tmp_path: Path) -> None:
    """By a loader's process too, whose errors torch would tell with a traceback."""
    with pytest.raises(ValueError) as told:
        train(replace(config, workers=workers), tmp_path, Material(Damaged()))
    assert str(told.value) == "b.tar: it is not whole" and not (tmp_path / "model.safetensors").exists()
