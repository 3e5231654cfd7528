"""One step of a training, computed in parts, with activations computed again, or in bf16, is the step that it was."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from samples import tiny_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lazydiff.data.batch import Batch
from lazydiff.data.stream import ExampleStream, ReadingPlan, SceneExamples, read_batches
from lazydiff.model.config import PRESETS
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.training import start
from lazydiff.training import train as loop
from lazydiff.training.average import Average, blank_copy, filled_copy
from lazydiff.training.config import CONFIGS, TrainingConfig, find_config
from lazydiff.training.engine import Engine, Launch, checkpoint_blocks
from lazydiff.training.objective import Objective
from lazydiff.training.train import train


@pytest.fixture
def config(model: LazyDiffusion) -> TrainingConfig:
    return TrainingConfig(model.config, steps=2, batch=32, noise_levels=1, precision="no", workers=0, clip=1e6)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "FITTED", 20)
    monkeypatch.setattr(loop, "sample_grid", lambda *unused: pytest.fail("nothing is to be drawn"))


def batches(config: TrainingConfig, parts: int = 1) -> list[Batch]:
    plan = ReadingPlan(config.seed, config.batch, config.readers, config.model.network.token)
    return next(read_batches(ExampleStream(SceneExamples(0), plan, range(config.readers)), parts))


def gradients(model: LazyDiffusion, config: TrainingConfig, steps: list[Batch]) -> dict[str, Tensor]:
    """Of a step, which are taken away before the optimiser sees them."""
    engine = Engine(Objective(model, config), config, Accelerator(cpu=True), sharded=False)
    found = {}

    def keep(*unused: object) -> None:
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    engine.optimiser.step = keep
    engine.step(steps, 0)
    return found


def assert_close(some: dict[str, Tensor], others: dict[str, Tensor], part: float) -> None:
    """Within a part of the largest gradient."""
    assert some.keys() == others.keys() and len(some) > 20
    largest = max(float(value.abs().max()) for value in some.values())
    for name, value in some.items():
        assert (value - others[name]).abs().max() <= part * largest, name


def test_two_times_sixteen_equals_thirty_two(config: TrainingConfig) -> None:
    """But for the order of the sums over a batch in fp32."""
    model = start.new_model(config, SceneExamples(0))
    whole = gradients(deepcopy(model), config, batches(config))
    parts = gradients(deepcopy(model), config, batches(config, 2))
    assert [len(batch.seeds) for batch in batches(config, 2)] == [16, 16]
    assert_close(whole, parts, 1e-5)


def test_checkpointing_changes_no_gradient_and_no_name(config: TrainingConfig) -> None:
    model = start.new_model(config, SceneExamples(0))
    plain, kind = deepcopy(model), type(model)
    names = list(model.state_dict())
    expected = gradients(plain, config, batches(config))
    found = gradients(model, replace(config, checkpointing=True), batches(config))
    assert type(model) is kind and list(model.state_dict()) == names
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler (g++)")
def test_compiled_blocks_change_no_gradient_and_no_name(vocabulary: bytes) -> None:
    """But for the order of operations in fp32, for holes of any size."""
    model = tiny_model("wiener", vocabulary, replace(PRESETS["lazydiffusion-512"], canvas=96)).requires_grad_(True)
    model.latent.requires_grad_(False)
    config = TrainingConfig(model.config, size=96, batch=2, noise_levels=1, precision="no", workers=0, clip=1e6)
    names = list(model.state_dict())
    compiled = deepcopy(model)
    for steps in batches(config), batches(replace(config, seed=1)):
        found = gradients(compiled, replace(config, compile=True), [steps[0]])
        assert_close(gradients(model, config, [steps[0]]), found, 1e-4)
    assert list(compiled.state_dict()) == names
    blocks = [[*one.encoder.blocks, *one.decoder.blocks] for one in (model, compiled)]
    assert [[block._compiled_call_impl is not None for block in some] for some in blocks] == [[False] * 4, [True] * 4]


def test_checkpointing_keeps_less(config: TrainingConfig) -> None:
    model = start.new_model(config, SceneExamples(0))
    [batch] = batches(config)

    def kept() -> int:
        seen = {}

        def pack(value: Tensor) -> Tensor:
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            Objective(model, config)(batch, 0)
        return sum(storage.nbytes() for storage in seen.values())

    before = kept()
    checkpoint_blocks(model)
    assert kept() < before / 2


def test_the_average_is_that_of_torch(model: LazyDiffusion) -> None:
    """Bit by bit; the first step takes the model as it is."""
    model = deepcopy(model).requires_grad_(True)
    ours = Average(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False)
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update(first=step == 0)
        theirs.update_parameters(model)
    expected = dict(theirs.module.named_parameters())
    assert expected.keys() == ours.parameters.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.parameters.items())


def test_a_model_of_averages_shares_their_memory(model: LazyDiffusion) -> None:
    model = deepcopy(model).requires_grad_(True)
    average, blank = Average(model, 0.9), blank_copy(model)
    assert all(p.device.type == "meta" for p in blank.parameters())
    filled = filled_copy(blank, average.parameters | dict(model.named_buffers()))
    assert filled.state_dict().keys() == model.state_dict().keys() and not filled.training
    for name, value in filled.named_parameters():
        assert value.data_ptr() == average.parameters[name].data_ptr() and not value.requires_grad
    assert torch.equal(filled.latent.mean, model.latent.mean)
    tied = filled.text.t5
    assert tied.shared.weight is tied.encoder.embed_tokens.weight


def test_bf16_trains(config: TrainingConfig, tmp_path: Path) -> None:
    config = replace(config, batch=2, precision="bf16", checkpointing=True, picture_every=10**6)
    AcceleratorState._reset_state()
    material = start.Material(SceneExamples(0))  # without a gallery
    path = train(config, tmp_path, material, Launch(torch.device("cpu")))
    losses = [float(row.split(",")[1]) for row in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert path.exists() and len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    assert not list(tmp_path.glob("*.png"))
    AcceleratorState._reset_state()


def test_a_tracker_is_told_every_step(config: TrainingConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(config, batch=2, checkpoint_every=1)
    train(config, tmp_path, start.Material(SceneExamples(0)), Launch(torch.device("cpu"), tracker="tensorboard"))
    events = EventAccumulator(str(tmp_path / "tiny"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1]


# What cannot be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 30, "readers": 4}, "batch is 30: it must be a multiple of readers, 4"),
        ({"readers": 0}, "readers is 0"),
        ({"accumulate": 1.5}, "accumulate is 1.5"),
        ({"checkpointing": "yes"}, "checkpointing is yes: choose true or false"),
        ({"optimiser": "sgd"}, "optimiser is sgd: choose adamw, muon"),
        ({"compile": True, "checkpointing": True}, "compile and checkpointing are both true"),
        ({"eps": 0}, "eps is 0"),
    ],
)
def test_impossible_settings_are_told(config: TrainingConfig, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(config, **changes).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({"readers": 8}, 3, "3 processes cannot share readers = 8"),
        ({"readers": 1}, 2, "2 processes cannot share readers = 1"),
        ({"readers": 2, "accumulate": 3}, 2, r"batch is 32: it must be a multiple of 6, the processes \(2\) times"),
    ],
)
def test_processes_that_cannot_share_a_step_are_told(
    config: TrainingConfig, changes: dict[str, int], processes: int, words: str
) -> None:
    config = replace(config, **changes)  # type: ignore[arg-type]
    config.check()
    with pytest.raises(ValueError, match=words):
        config.micro_batch(processes)
    assert replace(config, readers=4, accumulate=2).micro_batch(4) == 4


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (Launch(tracker="diary"), "tracker is diary: choose .*tensorboard"),
        (Launch(tracker="tensorboard"), "the tracker tensorboard has no package here: pip install tensorboard"),
        (Launch(sharded=True), "precision is fp16: a model that is sharded is trained in bf16 or no"),
        (Launch(sharded=True), "compile is true: a model that is sharded is not compiled"),
        (Launch(sharded=True), "optimiser is muon, which takes whole matrices: a model that is sharded has none"),
    ],
)
def test_launches_that_cannot_be_are_told(
    config: TrainingConfig, launch: Launch, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazydiff.training.engine.get_available_trackers", lambda: [])
    settings = {"precision": "fp16" if "fp16" in words else "no", "optimiser": "muon" if "muon" in words else "adamw"}
    config = replace(config, compile="compile" in words, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        train(config, tmp_path / "run", launch=launch)
    assert not (tmp_path / "run").exists()


def test_one_process_has_nothing_to_share(config: TrainingConfig) -> None:
    engine = Engine(
        Objective(start.new_model(config, SceneExamples(0)), config), config, Accelerator(cpu=True), sharded=True
    )
    assert not engine.sharded and isinstance(engine.objective, nn.Module)


@pytest.mark.parametrize("name", sorted(name for name in CONFIGS if not name.startswith("lazydiffusion-")))
def test_configurations_of_the_paper_read(name: str) -> None:
    """Their values are those of the specification, sections A.7, A.10 and A.11."""
    config = TrainingConfig.read(find_config(name))
    assert (config.batch, config.steps, config.noise_levels) == (224, 100_000, 1)
    assert (config.learning_rate, config.weight_decay, config.eps, config.clip) == (2e-5, 3e-2, 1e-10, 0.01)
    assert (config.warm_up, config.ema, config.drop_text, config.decay_from) == (1000, 0.9999, 0.1, 1.0)
    assert config.checkpointing and config.precision == "bf16" and config.model.prediction == "iddpm"
    assert [loop.rate(step, config) for step in (0, 999, 99_999)] == [0.001, 1.0, 1.0]
    network = config.model.network
    assert network.canvas == (512 if "512" in name else 1024) and network.micro_conditions == (network.canvas == 1024)
    assert network.dense == ("regenerate" in name) and config.crop == ("crop" in name)
    assert all(config.micro_batch(processes) == 224 // processes for processes in (1, 2, 4, 8))


def test_configurations_are_found_by_name_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="pixart: there is no such file, and the package brings .*pixart-1024"):
        find_config("pixart")
    Path("pixart-1024").write_text("mine")
    assert find_config("pixart-1024").read_text() == "mine"
    assert find_config("pixart-512") == CONFIGS["pixart-512"]
