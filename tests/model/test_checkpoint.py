"""Checkpoints hold everything, and a bad one is told from a good one by one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples import scene

from lazydiff.model.checkpoint import METADATA, VOCABULARY, CheckpointError, load_checkpoint, save_checkpoint
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit


@pytest.fixture
def path(model: LazyDiffusion, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, torch.float32)
    return path


def test_round_trip_is_exact(model: LazyDiffusion, path: Path) -> None:
    loaded = load_checkpoint(path)
    assert loaded.config == model.config and loaded.text.vocabulary == model.text.vocabulary
    assert loaded.fingerprint == model.fingerprint
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(edit(model, *scene(1)), edit(loaded, *scene(1)))


def test_public_loaders_find_the_decoder(path: Path, model: LazyDiffusion) -> None:
    """By PixArt's key names under the prefix that ComfyUI looks for."""
    prefix = "model.diffusion_model."
    names = {name.removeprefix(prefix) for name in load_file(path) if name.startswith(prefix)}
    assert {name for name in names if not name.startswith("encoder.")} == set(model.decoder.state_dict())
    assert "t_block.1.weight" in names


def test_half_precision_keeps_the_latent_space(model: LazyDiffusion, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "half.safetensors")
    assert load_file(tmp_path / "half.safetensors")["model.diffusion_model.encoder.norm.weight"].dtype == torch.float16
    assert torch.equal(load_checkpoint(tmp_path / "half.safetensors").latent.basis, model.latent.basis)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {METADATA: json.dumps({**json.loads(metadata(path)[METADATA]), **config})})


BIAS = "model.diffusion_model.ctx_fuse.bias"


def test_settings_that_are_no_more_are_passed_over(model: LazyDiffusion, path: Path) -> None:
    """Older files name them among their sizes; they changed no weight, and change no fingerprint."""
    network = json.loads(metadata(path)[METADATA])["network"]
    rewrite(path, lambda tensors: None, network={**network, "crop": True, "encoder_window": 8})
    loaded = load_checkpoint(path)
    assert loaded.config == model.config and loaded.fingerprint == model.fingerprint


def test_files_name_rotary_positions_only_where_they_are(model: LazyDiffusion, path: Path, tmp_path: Path) -> None:
    """Older versions read all others."""
    assert "rotary" not in metadata(path)[METADATA]
    turned = deepcopy(model)
    turned.config = replace(model.config, network=replace(model.config.network, rotary=True))
    save_checkpoint(turned, tmp_path / "turned.safetensors")
    assert load_checkpoint(tmp_path / "turned.safetensors").config == turned.config


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda path: path.unlink(), "no such file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "not a whole safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    "picture": (lambda path: path.write_bytes(b"\x89PNG\r\n" * 99), "not a whole safetensors file"),
    "of another kind": (lambda path: save_file({"w": torch.ones(1)}, path), "not a LazyDiffusion checkpoint"),
    "later version": (lambda path: rewrite(path, lambda tensors: None, format=99), "format 99 is unknown"),
    "foreign setting": (lambda path: rewrite(path, lambda tensors: None, flavour=1), "flavour"),
    "missing weight": (lambda path: rewrite(path, lambda t: t.pop(BIAS)), BIAS),
    "unknown weight": (lambda path: rewrite(path, lambda t: t.update(extra=torch.ones(1))), "extra"),
    "missing vocabulary": (lambda path: rewrite(path, lambda t: t.pop(VOCABULARY)), "no text encoder"),
    "wrong shape": (
        lambda path: rewrite(path, lambda t: t.update({BIAS: torch.ones(3)})),
        rf"{BIAS} has the shape \[3\], the model needs \[24\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_checkpoint_names_file_and_reason(path: Path, damage: str) -> None:
    break_it, message = DAMAGE[damage]
    break_it(path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_failed_save_leaves_the_old_file(model: LazyDiffusion, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full_disk(tensors: object, target: Path, metadata: object) -> None:
        Path(target).write_bytes(b"half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr("lazydiff.model.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(model, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
