"""Muon beside AdamW: what each of them does alone, and a training that goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from samples import tiny_model
from stopping import stopped
from torch import Tensor

from lazydiff.model.config import PRESETS
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.training import muon, start
from lazydiff.training import train as loop
from lazydiff.training.config import TrainingConfig
from lazydiff.training.engine import parameter_groups
from lazydiff.training.muon import MuonAdamW
from lazydiff.training.train import train

SETTINGS = {"lr": 0.02, "weight_decay": 0.1}


def walk(optimisers: list[torch.optim.Optimizer], parameters: list[Tensor]) -> None:
    """Some steps with the same gradients for the same shapes."""
    for step in range(4):
        for number, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(10 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimiser in optimisers:
            optimiser.step()


def parameters() -> list[Tensor]:
    shapes = (24, 24), (96, 24), (24, 72), (24,)
    return [torch.ones(shape).requires_grad_(True) for shape in shapes]


def test_the_steps_are_those_of_torchs_two_optimisers() -> None:
    ours, theirs = parameters(), parameters()
    groups = [{"params": ours[3:]}, {"params": ours[:3], "muon": True}]
    walk([MuonAdamW(groups, **SETTINGS)], ours)
    matrices = torch.optim.Muon(theirs[:3], adjust_lr_fn="match_rms_adamw", **SETTINGS)
    walk([matrices, torch.optim.AdamW(theirs[3:], **SETTINGS)], theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, torch.ones_like(a))


@pytest.mark.parametrize("process", [0, 4])
def test_more_processes_than_matrices(process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process moves its own matrix or none, and what has none is not waited for."""
    senders: list[int] = []
    monkeypatch.setattr(muon, "processes", lambda: 5)
    monkeypatch.setattr(muon, "rank", lambda: process)
    monkeypatch.setattr(muon.distributed, "broadcast", lambda tensor, sender: senders.append(sender))
    ours = parameters()
    optimiser = MuonAdamW([{"params": ours[3:]}, {"params": ours[:3], "muon": True}], **SETTINGS)
    walk([optimiser], ours)
    moved = [not torch.equal(each, torch.ones_like(each)) for each in ours]
    assert moved == [process == 0, False, False, True] and senders == [0, 1, 2] * 4
    optimiser.gather()
    assert senders == [0, 1, 2] * 5


def test_matrices_of_blocks_are_turned_and_nothing_else(vocabulary: bytes) -> None:
    model = tiny_model("wiener", vocabulary, replace(PRESETS["lazydiffusion-512"], canvas=96))
    *usual, turned = parameter_groups(model, 0.1, muon=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = {names[id(parameter)] for parameter in turned["params"]}
    blocks = {name for name, parameter in model.named_parameters() if ".blocks." in name and parameter.ndim == 2}
    assert chosen == {name for name in blocks if name.startswith(("encoder", "decoder")) and "table" not in name}
    everything = sum((group["params"] for group in (*usual, turned)), [])
    assert sorted(map(id, everything)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_stopped_training_ends_with_the_bits_of_an_unbroken_one(
    optimiser: str, model: LazyDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a state of before there was a choice, which names no optimiser."""
    monkeypatch.setattr(start, "FITTED", 20)
    config = TrainingConfig(
        model.config, steps=4, batch=2, noise_levels=1, precision="no", workers=0, optimiser=optimiser,
        checkpoint_every=2, picture_every=9,
    )  # fmt: skip
    monkeypatch.setattr(loop.Training, "pictured", lambda *unused: False)
    unbroken = train(config, tmp_path / "unbroken")
    stopped(config, tmp_path / "stopped", 3)
    about = tmp_path / "stopped" / "state-2" / "state.json"
    if optimiser == "adamw":
        told = json.loads(about.read_text("utf-8"))
        del told["training"]["optimiser"]
        about.write_text(json.dumps(told), "utf-8")
    path = train(config, tmp_path / "stopped")
    a, b = load_file(unbroken), load_file(path)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    kept = load_file(tmp_path / "stopped" / "state-4" / "exp_avg_sq.safetensors")
    assert kept and any(name.endswith("attn.proj.weight") for name in kept) == (optimiser == "adamw")
