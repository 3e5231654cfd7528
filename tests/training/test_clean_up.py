"""The clean-up of decoded cells: nothing at first, better after training, part of the checkpoint, exact outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import scene, tiny_model

from lazydiff.cli import main
from lazydiff.data.prepare import prepare_shards
from lazydiff.data.samples import Preparation
from lazydiff.data.sources import SceneSource, WorldSource
from lazydiff.model.checkpoint import load_checkpoint, read_settings, save_checkpoint
from lazydiff.model.config import PRESETS
from lazydiff.model.latent_space import CleanUp, PatchPCA
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit
from lazydiff.training.clean_up import PART, CleanUpTraining, clean_up_loss, train_clean_up

CELL = 8


def test_it_changes_nothing_at_first() -> None:
    image = torch.rand(2, 3, 48, 64) * 2 - 1
    assert torch.equal(CleanUp(8, CELL)(image), image)


def test_it_sees_three_cells_far() -> None:
    network, image = CleanUp(8, CELL), torch.zeros(1, 3, 88, 88, requires_grad=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network(image)[0, :, 40:48, 40:48].sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()  # type: ignore[union-attr]
    assert (rows.min(), rows.max()) == (2 * CELL, 9 * CELL - 1)


def test_it_learns_to_hide_tinted_cells() -> None:
    """Flat pictures whose cells are each a little brighter or darker."""
    torch.manual_seed(0)
    network = CleanUp(16, CELL)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)

    def tinted(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        truth = (torch.rand(rows, 3, 1, 1) - 0.5).expand(-1, -1, 48, 48)
        return truth + 0.1 * torch.randn(rows, 3, 6, 6).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3), truth

    everywhere = torch.ones(8, 1, 48, 48)
    for _ in range(80):
        coded, truth = tinted(8)
        clean_up_loss(network(coded), truth, everywhere).backward()
        optimiser.step()
        optimiser.zero_grad()
    coded, truth = tinted(8)
    before, after = (float(clean_up_loss(made, truth, everywhere)) for made in (coded, network(coded).detach()))
    assert after < 0.7 * before


def test_the_loss_counts_the_hole_alone() -> None:
    made, truth, mask = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., 4:9, 5:12] = 1
    disturbed = torch.where(mask > 0, made, made + 7)
    assert torch.equal(clean_up_loss(made, truth, mask), clean_up_loss(disturbed, truth, mask))


@pytest.fixture
def flow(vocabulary: bytes) -> LazyDiffusion:
    return tiny_model("flow", vocabulary)


TRAINING = CleanUpTraining(steps=3, pictures=2, width=8, batch=2)


def test_a_checkpoint_gains_it_and_nothing_else_changes(flow: LazyDiffusion, tmp_path: Path) -> None:
    save_checkpoint(flow, tmp_path / "before.safetensors")
    before = load_checkpoint(tmp_path / "before.safetensors")
    prepare_shards(SceneSource(2, 96, 0), tmp_path / "shards", Preparation(96, smallest=1), processes=1)
    path = tmp_path / "after.safetensors"
    train_clean_up(load_checkpoint(tmp_path / "before.safetensors"), f"{tmp_path}/shards/*.tar", TRAINING, path)
    after = load_checkpoint(path)

    assert after.config == replace(before.config, clean_up=8) and after.fingerprint == before.fingerprint
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    latent = torch.randn(1, 12, 12, 12)
    assert torch.equal(after.latent.decode_cells(latent), before.latent.decode(latent))
    assert not torch.equal(after.latent.decode(latent), before.latent.decode(latent))

    image, mask, prompt = scene(0)
    edited = edit(after, image, mask, prompt)
    outside = mask.expand_as(image) == 0
    assert torch.equal(edited[outside], image[outside]) and not torch.equal(edited, edit(before, image, mask, prompt))


def test_the_command_trains_on_large_pictures_too(vocabulary: bytes, tmp_path: Path) -> None:
    side = PART + 32
    large = tiny_model("wiener", vocabulary, replace(PRESETS["lazydiffusion-512"], canvas=side))
    save_checkpoint(large, tmp_path / "large.safetensors")
    prepare_shards(WorldSource(1, side, 0), tmp_path, Preparation(side, smallest=1), processes=1)
    command = ["clean-up", "--checkpoint", tmp_path / "large.safetensors", "--data", f"{tmp_path}/*.tar", "--output"]
    options = ["--steps", 2, "--pictures", 1, "--width", 4, "--device", "cpu"]
    assert main([str(each) for each in [*command, tmp_path / "clean.safetensors", *options]]) == 0
    assert read_settings(tmp_path / "clean.safetensors")[0].clean_up == 4
    assert main([str(each) for each in [*command, tmp_path / "large.safetensors", *options]]) == 2


@pytest.mark.parametrize("change, words", [({"steps": 0}, "steps is 0"), ({"weakest": 0.9}, "the smaller one first")])
def test_settings_that_cannot_be(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TRAINING, **change).check()  # type: ignore[arg-type]


def test_a_latent_space_without_it_is_as_before() -> None:
    assert set(PatchPCA(4, CELL).state_dict()) == {"mean", "basis", "scale", "variance"}
