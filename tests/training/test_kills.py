"""Training that is killed: whenever that is, the same command ends with the same files, and touches no others."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from samples import tiny_model

from lazydiff.core.locks import alone
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.sampling.flow import flow_loss
from lazydiff.training import start
from lazydiff.training import train as loop
from lazydiff.training.config import TrainingConfig
from lazydiff.training.state import ABOUT, PARTS, State, file_of, newest_state
from lazydiff.training.train import rate, train


def config_of(vocabulary: bytes) -> TrainingConfig:
    return TrainingConfig(
        tiny_model("flow", vocabulary, "small").config, steps=6, batch=2, noise_levels=1, precision="no", workers=0,
        checkpoint_every=2, picture_every=3, warm_up=2,
    )  # fmt: skip


@pytest.fixture
def config(vocabulary: bytes) -> TrainingConfig:
    return config_of(vocabulary)


def grid(model: LazyDiffusion, *others: object) -> Image.Image:
    """In the grid's place a pixel that shows the weights."""
    value = int(1e6 * float(sum(p.detach().abs().mean() for p in model.parameters()))) % 256
    return Image.new("RGB", (1, 1), (value, 0, 0))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "FITTED", 20)
    monkeypatch.setattr(loop, "sample_grid", grid)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in it, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(vocabulary: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a training that nothing has disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "FITTED", 20)
        patch.setattr(loop, "sample_grid", grid)
        folder = tmp_path_factory.mktemp("whole")
        train(config_of(vocabulary), folder)
    return files(folder)


class Killed(BaseException):
    pass


def stop_at(patch: pytest.MonkeyPatch, owner: object, name: str, call: int, after: bool) -> None:
    """The `call`-th call of a function kills the training, before or after it has done its work."""
    function, calls = getattr(owner, name), [0]

    def killing(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == call and not after:
            raise Killed
        result = function(*arguments, **named)
        if calls[0] == call:
            raise Killed
        return result

    patch.setattr(owner, name, killing)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (loop, "save_checkpoint", 3), (loop, "sample_grid", 1), (loop, "sample_grid", 2), (State, "save", 3),
        ("lazydiff.training.state", "remove", 1), ("lazydiff.training.state", "remove", 2), (Path, "rename", 2),
    ],
)  # fmt: skip
def test_killed_anywhere_the_same_command_finishes_it(
    config: TrainingConfig, whole: dict[str, bytes], owner: object, name: str, call: int, after: bool, tmp_path: Path
) -> None:
    """Among them: between the last state and model.safetensors, and in a grid of samples."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, sys.modules[owner] if isinstance(owner, str) else owner, name, call, after)
        train(config, tmp_path)
    train(config, tmp_path)
    assert files(tmp_path) == whole


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"stale")])
def test_a_finished_training_has_its_model(
    config: TrainingConfig, whole: dict[str, bytes], damage: Callable[[Path], object], tmp_path: Path
) -> None:
    for name, content in whole.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    damage(tmp_path / "model.safetensors")
    assert train(config, tmp_path).read_bytes() == whole["model.safetensors"]
    assert files(tmp_path) == whole


def test_only_its_own_states_are_touched(config: TrainingConfig, tmp_path: Path) -> None:
    train(config, tmp_path)
    for name in ("state-6-backup", "state-best", "states", "unfinished"):
        (tmp_path / "state-6").rename(tmp_path / name)
        foreign = files(tmp_path / name)
        train(config, tmp_path)  # as there is no state of ours, from the start
        assert files(tmp_path / name) == foreign and (tmp_path / "state-6" / ABOUT).exists()


def test_a_folder_of_a_states_name_that_is_none_is_told_and_kept(config: TrainingConfig, tmp_path: Path) -> None:
    (tmp_path / "state-4").mkdir(parents=True)
    (tmp_path / "state-4" / "random_states_0.pkl").write_bytes(b"of an earlier version")
    with pytest.raises(ValueError, match="state-4 has the name of a training's state"):
        train(config, tmp_path)
    assert (tmp_path / "state-4" / "random_states_0.pkl").exists() and not (tmp_path / "model.safetensors").exists()


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)

    def __init__(self, folder: Path):
        self.folder = folder


def test_resuming_runs_nothing_that_lies_in_a_state(config: TrainingConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "out")
    payload = pickle.dumps(Payload(tmp_path / "it ran"))
    state = tmp_path / "out" / "state-6"
    assert sorted(path.name for path in state.iterdir()) == sorted([ABOUT, *map(file_of, PARTS)])
    names = ("custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "random_states_0.pkl", "optimizer.bin")
    for name in names:
        (state / name).write_bytes(payload)
    train(config, tmp_path / "out")
    (state / file_of("exp_avg")).write_bytes(payload)
    with pytest.raises(ValueError, match="state-6 is damaged"):
        train(config, tmp_path / "out")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 1e-4}, "learning_rate 0.0015 there and 0.0001 here"),
        ({"steps": 9}, "steps 6 there and 9 here"),
        ({"betas": (0.5, 0.9)}, "betas"),
        ({"seed": 1}, "seed 0 there and 1 here"),
    ],
)
def test_other_settings_are_refused(
    config: TrainingConfig, changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    train(config, tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=words):
        train(replace(config, **changes), tmp_path)  # type: ignore[arg-type]
    network = replace(config.model.network, width=48)
    with pytest.raises(ValueError, match="model.network.width 24 there and 48 here"):
        train(replace(config, model=replace(config.model, network=network)), tmp_path)
    assert files(tmp_path) == before
    train(replace(config, checkpoint_every=1), tmp_path)  # which changes nothing of the model


def test_states_name_rotary_positions_only_where_they_are(config: TrainingConfig, tmp_path: Path) -> None:
    """Those from before there were any go on."""
    train(config, tmp_path)
    assert "rotary" not in (tmp_path / "state-6" / "state.json").read_text("utf-8")
    turned = replace(config, model=replace(config.model, network=replace(config.model.network, rotary=True)))
    with pytest.raises(ValueError, match="rotary missing there and True here"):
        train(turned, tmp_path)


@pytest.mark.parametrize("damage", ["name", "shape", "moment", "truncated"])
def test_a_damaged_state_is_told(config: TrainingConfig, damage: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    train(config, tmp_path)
    path = tmp_path / "state-6" / file_of("exp_avg" if damage == "moment" else "model")
    tensors = load_file(path)
    if damage == "name":
        tensors["extra"] = torch.ones(1)
    elif damage == "shape":
        tensors["encoder.norm.weight"] = torch.ones(3)
    elif damage == "moment":
        del tensors["encoder.norm.weight"]
    save_file(tensors, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="state-6 is damaged"):
        train(config, tmp_path)
    assert path.exists()


def test_two_trainings_in_a_folder_are_refused(config: TrainingConfig, tmp_path: Path) -> None:
    with alone(tmp_path, "training"), pytest.raises(ValueError, match="another training is at work"):
        train(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"training.lock"}


def test_the_lock_of_a_killed_training_is_none(tmp_path: Path) -> None:
    """The system takes it back with the process."""
    lock = str(tmp_path / "training.lock")
    hold = f"import os; from filelock import FileLock; FileLock({lock!r}).acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", hold]).returncode == 9
    with alone(tmp_path, "training"):
        pass


# A process of its own, because one that has threads cannot be copied: it copies itself and kills the copies.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import test_kills as tests
from lazydiff.training.state import UNFINISHED
tests.start.FITTED, tests.loop.sample_grid = 20, tests.grid
output, vocabulary = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
rng, killed = random.Random(5), 0

def gone(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

for in_a_save in (True, False) * 5:
    child = os.fork()
    if not child:
        signal.alarm(60)
        tests.train(tests.config_of(vocabulary), output)
        os._exit(0)
    while in_a_save and not (output / UNFINISHED).exists() and not gone(child):
        time.sleep(0.0005)
    time.sleep((0.01 if in_a_save else 0.8) * rng.random())
    if not gone(child):
        os.kill(child, signal.SIGKILL)
        killed += 1
    os.waitpid(child, 0)
tests.train(tests.config_of(vocabulary), output)
print(killed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that begin as copies of another")
def test_killed_at_random_moments_it_ends_with_the_same_files(
    vocabulary: bytes, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """By SIGKILL, at moments drawn by chance, some of them within a save."""
    (tmp_path / "vocabulary").write_bytes(vocabulary)
    here = Path(__file__).parent
    code = KILLER.format(paths=[str(here), str(here.parent), str(here.parents[1])])
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "vocabulary")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=one_thread)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 4
    assert files(tmp_path / "out") == whole


def test_the_rate_is_told_for_every_setting(config: TrainingConfig) -> None:
    """No warm-up and no decay used to divide by zero, the second at the very end of a training."""
    plain = replace(config, warm_up=0, decay_from=1.0)
    assert [rate(step, plain) for step in range(config.steps + 1)] == [1.0] * (config.steps + 1)


def test_a_loss_that_is_no_number_ends_the_training(config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="not a number from step 0 on"):
        patch.setattr("lazydiff.training.objective.flow_loss", lambda *args: flow_loss(*args) * torch.nan)
        train(config, tmp_path)
    assert newest_state(tmp_path) is None and not (tmp_path / "model.safetensors").exists()
