"""Training: a run that was killed and taken up again equals the unbroken one, step by step and weight by weight."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from samples import tiny_model

from lazydiff.core.tokens import HoleTokens
from lazydiff.data.batch import Batch
from lazydiff.data.prepare import prepare_shards
from lazydiff.data.samples import Preparation
from lazydiff.data.sources import WorldSource
from lazydiff.data.stream import ExampleStream, ReadingPlan, SceneExamples, ShardExamples, read_batches
from lazydiff.evaluation.laboratory import SMALL, WEIGHTS
from lazydiff.evaluation.regenerate import paint_baseline
from lazydiff.model.checkpoint import load_checkpoint, save_checkpoint
from lazydiff.model.config import PRESETS
from lazydiff.model.layers import explicit_attention, sdpa
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.fit import crop_all
from lazydiff.sampling.flow import SPREAD, Network, Preconditioning, draw_sigmas, flow_loss, predict_clean
from lazydiff.training import start
from lazydiff.training import train as loop
from lazydiff.training.config import CONFIGS, TrainingConfig
from lazydiff.training.log import Log
from lazydiff.training.objective import Objective
from lazydiff.training.pictures import Gallery, paint_lazy, sample_grid
from lazydiff.training.start import Material
from lazydiff.training.train import rate, train


@pytest.fixture
def config(model: LazyDiffusion) -> TrainingConfig:
    return TrainingConfig(
        model.config, steps=6, batch=2, noise_levels=2, precision="no", workers=0, checkpoint_every=2,
        picture_every=100, warm_up=2,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "FITTED", 20)
    monkeypatch.setattr(loop, "sample_grid", lambda *unused: Image.new("RGB", (1, 1)))


def scene_batch(number: int) -> Batch:
    """The first of a training on scenes."""
    [batch] = next(read_batches(ExampleStream(SceneExamples(0), ReadingPlan(0, number, 1, 8), range(1)), 1))
    return batch


def log(folder: Path) -> list[list[str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("preset", ["small", "small-image", "small-crop"])
def test_killed_run_goes_on_without_losing_or_repeating_a_step(
    config: TrainingConfig, preset: str, vocabulary: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tiny_model(config.model.prediction, vocabulary, preset).config
    config = replace(config, model=trained, crop=preset == "small-crop")
    train(config, tmp_path / "whole")

    forward, calls = Objective.forward, [0]

    def killed(self: Objective, batch: Batch, step: int) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 4:  # in the second step after the first checkpoint
            raise KeyboardInterrupt
        return forward(self, batch, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Objective, "forward", killed)
        train(config, tmp_path / "broken")
    assert [path.name for path in (tmp_path / "broken").glob("state-*")] == ["state-2"]
    train(config, tmp_path / "broken")

    assert log(tmp_path / "broken") == log(tmp_path / "whole")
    assert [row[0] for row in log(tmp_path / "whole")] == ["step", *map(str, range(6))]
    whole, broken = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert whole.keys() == broken.keys() and all(torch.equal(whole[name], broken[name]) for name in whole)


def test_another_process_never_sees_half_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "log.csv", Path.write_text

    def watched(self: Path, *given: str) -> int:
        self.touch()
        Log(path, writes=False)
        return write(self, *given)

    monkeypatch.setattr(Path, "write_text", watched)
    Log(path, writes=True)
    Log(path, writes=False)
    monkeypatch.undo()
    path.write_text("some other file")
    with pytest.raises(ValueError, match="no log of a training"):
        Log(path, writes=False)


@pytest.mark.parametrize("preset", ["small-image", "small-crop"])
def test_a_baseline_computes_everything_and_is_judged_by_the_hole(
    preset: str, vocabulary: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that of a slow loop over tokens; in a crop, those of the square around the hole."""
    seen: dict[str, torch.Tensor] = {}

    def watch(network: Network, x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, *others: torch.Tensor):
        seen.update(x=x, noise=noise, sigma=sigma, counted=others[1])
        return flow_loss(network, x, noise, sigma, *others)

    monkeypatch.setattr("lazydiff.training.objective.flow_loss", watch)
    model = tiny_model("flow", vocabulary, preset)
    crop = preset == "small-crop"
    config = TrainingConfig(model.config, noise_levels=1, drop_text=0.0, weigh_variance_from=99, crop=crop)
    batch = scene_batch(2)
    loss = float(Objective(model, config)(batch, step=0))

    image, mask, side = batch.image.float() / 127.5 - 1, batch.mask.float(), model.config.network.canvas
    if crop:
        image, mask = crop_all(image, mask, side)
    rows = []
    for i in range(2):
        cells = [bool(mask[i, 0, y : y + 8, x : x + 8].any()) for y in range(0, side, 8) for x in range(0, side, 8)]
        assert seen["counted"][i].tolist() == cells and seen["x"].shape[1] == len(cells)
        everything = HoleTokens.everything(1, (side // 8, side // 8))
        told = model.context(image[i : i + 1], mask[i : i + 1], everything)
        text, sigma = model.prompt([batch.captions[i]]), seen["sigma"][i : i + 1]
        clean, noise = model.tokens(image[i : i + 1]), seen["noise"][i : i + 1]
        z = (1 - sigma) * clean + sigma * noise
        x0 = predict_clean(lambda x, t: model.decoder(x, t, text, everything, told), z, sigma, model.variance)  # noqa: B023
        error = ((x0 - clean) / Preconditioning.at(sigma, model.variance).out).square().mean(-1)
        rows.append(float(error[0, torch.tensor(cells)].mean()))
    assert loss == pytest.approx(np.mean(rows), rel=1e-4)


@pytest.mark.parametrize("preset", ["small", "small-image", "small-crop"])
def test_grid_of_samples_shows_edits(preset: str, vocabulary: bytes) -> None:
    paint = paint_lazy if preset == "small" else partial(paint_baseline, crop=preset == "small-crop")
    picture = sample_grid(tiny_model("flow", vocabulary, preset), Gallery.of_scenes(0, 1), paint)
    before, after = (np.asarray(picture)[8:200, x : x + 192].astype(int) for x in (8, 208))
    changed = (before != after).any(-1)
    assert 0.01 < changed.mean() < 0.9 and picture.width == 2 * 200 + 8


def test_training_lowers_the_loss_on_one_batch(config: TrainingConfig, vocabulary: bytes) -> None:
    model = start.new_model(config, SceneExamples(0))
    objective = Objective(model, config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = scene_batch(2)
    losses = []
    for _ in range(25):
        loss = objective(batch, step=0)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters()), "a parameter that nothing trains"
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_preconditioned_target_has_unit_variance() -> None:
    """What the network is asked for is of one size at every noise level and in channels of any variance."""
    variance = torch.tensor([0.01, 1.0, 30.0])
    x = torch.randn(4, 20000, 3) * variance.sqrt()
    for sigma in (0.02, 0.3, 0.7, 0.98):
        level = torch.full((4,), sigma)
        z = (1 - sigma) * x + sigma * torch.randn_like(x)
        factor = Preconditioning.at(level, variance)
        target = (x - factor.skip * z) / factor.out
        assert torch.allclose(target.var((0, 1)), torch.ones(3), rtol=0.05)
        assert torch.allclose((factor.scale * z).var((0, 1)), torch.ones(3), rtol=0.05)
        # A network that knows nothing leaves the Wiener estimate, whose error is what is predicted.
        estimate = predict_clean(lambda z, t: torch.zeros_like(z), z, level, variance)
        assert torch.allclose((estimate - x).var((0, 1)), factor.out[0, 0] ** 2, rtol=0.05)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("spread", [-3.0, 0.0, 1.5, 99.0])
def test_expected_tokens_are_corrected_by_what_is_seen(sigma: float, spread: float) -> None:
    """The estimate is the mean of the tokens that are possible, counted one by one."""
    mean, variance = 0.7, torch.tensor([0.04, 1.0, 9.0])
    z, answer = torch.tensor([[[-0.4, 0.1, 2.5]]]), torch.tensor([[[mean] * 3 + [spread] * 3]])
    estimate = predict_clean(lambda z, t: answer, z, torch.tensor([sigma]), variance, "wiener")
    wide = variance.sqrt().double() * math.exp(min(spread, SPREAD) / 2)
    x = torch.linspace(-200, 200, 1_000_001, dtype=torch.float64)[:, None]
    logarithm = -((x - mean * variance.sqrt()) ** 2) / (2 * wide**2) - (z[0, 0] - (1 - sigma) * x) ** 2 / (2 * sigma**2)
    expected = (logarithm.softmax(0) * x).sum(0)
    assert torch.allclose(estimate[0, 0].double(), expected, atol=1e-3)


def test_flow_loss_ignores_padding() -> None:
    x, noise, sigma = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.tensor([0.3, 0.6])
    valid = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])

    def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.5 * z

    def loss(x: torch.Tensor) -> torch.Tensor:
        return flow_loss(network, x, noise, sigma, torch.ones(3), valid, torch.ones(3))

    disturbed = x.clone()
    disturbed[1, 2:] = 99
    assert torch.equal(loss(x), loss(disturbed))
    one = torch.ones(3)
    first = flow_loss(network, x[:1], noise[:1], sigma[:1], one, valid[:1], one)
    second = flow_loss(network, x[1:, :2], noise[1:, :2], sigma[1:], one, valid[1:, :2], one)
    assert torch.allclose(loss(x), (first + second) / 2)


def test_channels_count_by_their_variance_from_a_step_on(vocabulary: bytes) -> None:
    """On the flow path; the paper's loss has no such weight."""
    plan = TrainingConfig(tiny_model("flow", vocabulary).config, noise_levels=2, weigh_variance_from=3)
    model = start.new_model(plan, SceneExamples(0))
    batch = scene_batch(2)
    alike, still, weighed = (
        float(Objective(model, plan)(batch, step).detach()) for step in (0, 2, 3)
    )
    assert alike == still != weighed
    assert model.variance.argmax() == 0 and model.variance[0] > 4 * model.variance.mean()


def test_noise_levels_are_stratified_and_cover_everything() -> None:
    sigma = draw_sigmas(500, 4, 0.7, 1.3, torch.Generator().manual_seed(0))
    assert sigma.shape == (2000,) and 0 < sigma.min() < 0.02 and 0.98 < sigma.max() < 1
    assert abs(sigma.median() - torch.sigmoid(torch.tensor(0.7))) < 0.03


def test_learning_rate_warms_up_and_ends_at_zero(config: TrainingConfig) -> None:
    plan = replace(config, steps=100, warm_up=10, decay_from=0.4)
    shares = [rate(step, plan) for step in range(101)]
    assert shares[0] == 0.1 and shares[9:41] == [1.0] * 32 and shares[100] == 0
    assert np.all(np.diff(shares[40:]) < 0)


def test_explicit_attention_equals_the_fused_one() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    mask = torch.rand(2, 1, 1, 9) > 0.3
    mask[..., 0] = True
    for m in (None, mask):
        assert torch.allclose(explicit_attention(q, k, v, m), sdpa(q, k, v, m), atol=1e-6)


@pytest.fixture
def large(vocabulary: bytes) -> LazyDiffusion:
    """Like the 512 px model, with a canvas of 128 px."""
    return tiny_model("wiener", vocabulary, replace(PRESETS["lazydiffusion-512"], canvas=128))


def world_shards(folder: Path, size: int, count: int = 3) -> Material:
    prepare_shards(WorldSource(count, size, 0), folder, Preparation(size, smallest=1), processes=1)
    return Material(ShardExamples(f"{folder}/*.tar", 0), gallery=Gallery.of_shards(f"{folder}/*.tar", number=1))


def test_a_first_stage_on_small_pictures_and_a_second_on_whole_ones(large: LazyDiffusion, tmp_path: Path) -> None:
    """The second begins with the first in every part, and goes on as any other where it is stopped."""
    first, second = (world_shards(tmp_path / f"shards-{size}", size) for size in (64, 128))
    config = TrainingConfig(large.config, size=64, steps=2, batch=2, precision="no", workers=0, picture_every=9)
    with pytest.raises(ValueError, match="side in px: 128, the model's: 64"):
        train(config, tmp_path / "wrong", second)
    path = train(config, tmp_path / "first", first)
    begun, words = load_checkpoint(path), set("background a red tree another one".split())
    assert words - set(begun.config.words) != words

    config = replace(config, size=None, steps=4, checkpoint_every=2, learning_rate=1e-9)
    second = replace(second, initialise=path)
    done = load_checkpoint(train(config, tmp_path / "second", second))
    assert done.config == begun.config and done.text.vocabulary == begun.text.vocabulary
    for (name, before), after in zip(begun.state_dict().items(), done.state_dict().values(), strict=True):
        assert torch.allclose(before, after, atol=1e-3), name  # half precision, and a rate of next to nothing

    for tree in (tmp_path / "second").glob("state-*"):
        shutil.rmtree(tree)
    train(replace(config, steps=4), tmp_path / "second", second)
    with pytest.raises(ValueError, match="with other settings"):
        train(config, tmp_path / "second", replace(second, initialise=None))


def test_weights_of_another_network_are_no_beginning(
    large: LazyDiffusion, model: LazyDiffusion, tmp_path: Path
) -> None:
    save_checkpoint(model, tmp_path / "other.safetensors")
    config = TrainingConfig(large.config, size=64, steps=1, batch=1, precision="no", workers=0)
    material = replace(world_shards(tmp_path, 64, 1), initialise=tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not that of the configuration"):
        train(config, tmp_path / "out", material)


@pytest.mark.parametrize("size", [0, 8, 72, 144, 64.0])
def test_sizes_of_pictures_that_cannot_be(large: LazyDiffusion, size: int) -> None:
    with pytest.raises(ValueError, match="size is"):
        TrainingConfig(large.config, size=size).check()


def test_a_large_model_needs_shards(large: LazyDiffusion, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give shards"):
        train(TrainingConfig(large.config, steps=1), tmp_path)


@pytest.mark.parametrize("kind", ["image", "crop"])
def test_configurations_of_the_baselines_read(kind: str) -> None:
    config = TrainingConfig.read(WEIGHTS / f"regenerate-{kind}.toml")
    assert config.model.network.dense and config.crop == (kind == "crop")
    assert config.model.network.canvas == (48 if config.crop else 96)


def test_all_stages_of_the_large_model_are_of_one_network() -> None:
    endings = "-first", "-second", "-third", ""
    first, *others = (TrainingConfig.read(CONFIGS[f"lazydiffusion-512{ending}"]) for ending in endings)
    assert all(other.model == first.model for other in others)
    assert [stage.side for stage in (first, *others)] == [128, 192, 256, 384]
    with torch.device("meta"):
        model = LazyDiffusion(first.model, None, None)
    halves = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert halves < 40e6  # the file may have 45 MB, of which text encoder and clean-up need some


def test_configuration_of_the_small_model_reads(tmp_path: Path) -> None:
    small = SMALL.with_suffix(".toml")
    config = TrainingConfig.read(small, steps=7)
    assert config.steps == 7 and config.model.network.canvas == 96
    (tmp_path / "bad.toml").write_text(small.read_text() + "\nlerning_rate = 1\n")
    with pytest.raises(ValueError, match="lerning_rate"):
        TrainingConfig.read(tmp_path / "bad.toml")
