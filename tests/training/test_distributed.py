"""Training on two processes, with copies of the model or with parts of it, follows that of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from samples import tiny_model
from stopping import stopped

from lazydiff.model.config import PRESETS
from lazydiff.training import start
from lazydiff.training import train as loop
from lazydiff.training.config import TrainingConfig
from lazydiff.training.engine import Launch
from lazydiff.training.train import train

STEPS, HALF = 20, 10
KINDS = ["copies", "parts", "parts, then one", "one, then parts"]
# Sums of gradients are rounded in another order, and the optimiser carries that on: some units of the log's last digit.
SAME = 1e-4


def config_of(vocabulary: bytes, **settings: object) -> TrainingConfig:
    shape = replace(PRESETS["small"], encoder_depth=1)
    plain = TrainingConfig(
        tiny_model("flow", vocabulary, shape).config, steps=STEPS, batch=4, readers=2, noise_levels=1, precision="no",
        workers=0, checkpoint_every=HALF, picture_every=HALF, warm_up=2,
    )  # fmt: skip
    return replace(plain, **settings)  # type: ignore[arg-type]


def quick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(start, "FITTED", 20)
    patch.setattr(loop, "sample_grid", lambda *unused: Image.new("RGB", (1, 1)))


def two_processes(folder: Path) -> None:
    """What each of them does, one training after the other."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    vocabulary = (folder / "vocabulary").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        plain, sharded = Launch(), Launch(sharded=True)
        assert PartialState(cpu=True).num_processes == 2
        train(config_of(vocabulary), folder / "copies", launch=plain)
        train(config_of(vocabulary, checkpointing=True, accumulate=2), folder / "parts", launch=sharded)
        stopped(config_of(vocabulary), folder / "parts, then one", HALF + 2, sharded)
        train(config_of(vocabulary), folder / "one, then parts", launch=sharded)
        stopped(config_of(vocabulary, optimiser="muon"), folder / "parts of Muon, then one", HALF + 2, plain)
        AcceleratorState._reset_state()
        half = config_of(vocabulary, precision="bf16", steps=6, accumulate=2)
        train(half, folder / "bf16 copies", launch=plain)
        train(replace(half, checkpointing=True), folder / "bf16 parts", launch=sharded)


def losses(folder: Path) -> np.ndarray:
    """[steps, 2]: loss and length of the gradient."""
    table = np.loadtxt(folder / "log.csv", delimiter=",", skiprows=1)
    assert table[:, 0].tolist() == list(range(len(table))) and len(table) in (6, STEPS)
    return table[:, 1:3]


@pytest.fixture(scope="module")
def trained(vocabulary: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one training by one process, and others by two."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "vocabulary").write_bytes(vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        train(config_of(vocabulary), folder / "one")
        stopped(config_of(vocabulary), folder / "one, then parts", HALF + 2)
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), str(here.parents[1])]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        run = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=300, env=environment)
        assert run.returncode == 0, run.stderr
        train(config_of(vocabulary), folder / "parts, then one")
        for name in ("one of Muon", "parts of Muon, then one"):
            train(config_of(vocabulary, optimiser="muon"), folder / name)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_follow_the_curve_of_one(trained: Path, kind: str) -> None:
    curve = losses(trained / kind)
    assert len(curve) == STEPS and np.abs(curve - losses(trained / "one")).max() <= SAME


def test_matrices_that_two_processes_share_among_them_go_on_as_with_one(trained: Path) -> None:
    curve = losses(trained / "parts of Muon, then one")
    assert len(curve) == STEPS and np.abs(curve - losses(trained / "one of Muon")).max() < 1.5 * SAME


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_files_come_out(trained: Path, kind: str) -> None:
    """With the same weights, to half precision's rounding of numbers of about 1."""
    names = sorted(str(path.relative_to(trained / "one")) for path in (trained / "one").rglob("*"))
    assert sorted(str(path.relative_to(trained / kind)) for path in (trained / kind).rglob("*")) == names
    one, other = (load_file(trained / folder / "model.safetensors") for folder in ("one", kind))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight.float() - other[name].float()).abs().max() < 2e-3, name


def test_in_bf16_both_ways_agree(trained: Path) -> None:
    """Better than bf16's own rounding, 2⁻⁸: what is sharded is multiplied in the numbers that autocast makes."""
    copies, parts, one = (losses(trained / kind)[:, 0] for kind in ("bf16 copies", "bf16 parts", "one"))
    assert np.abs(copies - parts).max() < 2e-3 < 2**-8
    assert len(copies) == 6 and 0 < np.abs(copies - one[:6]).max() < 2e-2


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
