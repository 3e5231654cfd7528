"""Training of gates: what it learns from, what it leaves alone, what it writes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from samples import tiny_model

from lazydiff.cache.module_skip import Gates, SkipPolicy, load_gates
from lazydiff.cli import main
from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.sample import PROMPTS
from lazydiff.sampling.denoiser import lazy_denoiser
from lazydiff.sampling.noise import CanvasNoise
from lazydiff.sampling.samplers import sample_euler
from lazydiff.sampling.schedules import flow_sigmas
from lazydiff.training.gates import (
    EncodedScenes,
    GateTraining,
    Soft,
    distillation,
    prepare,
    scene_batches,
    step_before,
    train_gates,
)

STEPS, MODULES = 4, 4
LEVELS = flow_sigmas(STEPS)


@pytest.fixture(scope="module")
def flow(vocabulary: bytes) -> LazyDiffusion:
    return tiny_model("flow", vocabulary)


def batch(model: LazyDiffusion) -> EncodedScenes:
    scenes = next(scene_batches(GateTraining(scenes=3), model.config.network.token))
    return prepare(model, scenes, 0.0, torch.Generator().manual_seed(0))


def test_a_step_is_the_samplers_own(flow: LazyDiffusion) -> None:
    """Of Euler's method, written out: x̂ and ε̂ at the level before, put together at the level."""
    scene, session = batch(flow), SkipPolicy(LEVELS).session("", LEVELS)
    z = step_before(flow, scene, sample_euler, LEVELS[1:3], session)
    noise = CanvasNoise(scene.seeds, scene.context.hole, scene.clean.shape[-1]).next()
    high, low = LEVELS[1], LEVELS[2]
    noisy = (1 - high) * scene.clean + high * noise
    x0 = lazy_denoiser(flow, scene.context, scene.captions, guidance=1.0)(noisy, high)
    expected = (1 - low) * x0 + low * (noisy - (1 - high) * x0) / high
    assert torch.allclose(z, expected, atol=1e-5)  # the same sums
    assert len(session.kept[PROMPTS]) == MODULES


def test_soft_gates_go_from_the_kept_outputs_to_the_models_own(flow: LazyDiffusion) -> None:
    scene, session = batch(flow), SkipPolicy(LEVELS).session("", LEVELS)
    z = step_before(flow, scene, sample_euler, LEVELS[:2], session)
    distances = {}
    for name, value in {"closed": -1e3, "half": 0.0, "open": 1e3}.items():
        soft = Soft(torch.zeros(MODULES, flow.config.network.width), session.kept[PROMPTS], scene.context.hole.key_mask)
        with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                "lazydiff.training.gates.score",
                lambda z, w, valid, value=value: torch.sigmoid(z.new_full((len(z),), value)),
            )
            distances[name] = float(distillation(flow, scene, z, LEVELS[1], soft))
    assert distances["open"] == 0 < distances["half"] < distances["closed"]


@pytest.mark.parametrize(("penalty", "closed"), [(0.0, False), (1e3, True)])
def test_penalties_close_gates_and_distance_opens_them(
    flow: LazyDiffusion, penalty: float, closed: bool, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    sampling = replace(flow.config.sampling, sampler="euler", steps=STEPS)
    training = GateTraining(penalty, penalty, steps=6, scenes=3, learning_rate=1e-2)
    gates = train_gates(flow, sampling, training, tmp_path / "a.gates.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert not gates.weights[::2].any() and gates.weights[1::2].any(-1).all()
    assert bool((gates.scores[1::2].mean() < 0.5) == closed)

    back = load_gates(tmp_path / "a.gates.safetensors")
    assert torch.equal(back.weights, gates.weights) and back.settings["attention_penalty"] == penalty
    back.session(flow.fingerprint, LEVELS)  # for this model and these steps
    rows = list(csv.DictReader((tmp_path / "a.gates.csv").open()))
    assert [row["step"] for row in rows] == list("012345")
    assert {float(row["noise_level"]) for row in rows} <= {0.75, 0.25}


def test_training_again_gives_the_same_gates(flow: LazyDiffusion, tmp_path: Path) -> None:
    sampling = replace(flow.config.sampling, steps=STEPS)
    made = [
        train_gates(flow, sampling, GateTraining(steps=2, scenes=2), tmp_path / f"{i}.gates.safetensors") for i in "ab"
    ]
    assert torch.equal(made[0].weights, made[1].weights) and made[0].weights.any()


def test_what_cannot_have_gates_is_refused(model: LazyDiffusion, dense_model: LazyDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "a.gates.safetensors"
    odd = replace(model.config.sampling, steps=5)
    expected = "choose an even number" if model.config.prediction == "flow" else "flow models"
    with pytest.raises(ValueError, match=expected):
        train_gates(model, odd, GateTraining(), path)
    with pytest.raises(ValueError, match="hole tokens alone"):
        train_gates(dense_model, replace(odd, steps=4), GateTraining(), path)
    assert not path.exists()


def test_the_command_trains_and_edit_uses_them(
    flow: LazyDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, path = tmp_path / "model.safetensors", tmp_path / "model.gates.safetensors"
    save_checkpoint(flow, checkpoint)
    common = ["--checkpoint", str(checkpoint), "--steps", "4", "--sampler", "euler"]
    assert main(["gates", *common, "--output", str(path), "--updates", "2", "--scenes", "2", "--penalty", "1"]) == 0
    assert isinstance(load_gates(path), Gates) and path.with_suffix(".csv").exists()
    Image.new("RGB", (96, 96), "grey").save(tmp_path / "in.png")
    where = ["--image", str(tmp_path / "in.png"), "--box", "20", "20", "30", "30", "--prompt", "a tree"]
    edit = ["edit", *where, "--output", str(tmp_path / "out"), "--guidance", "1", "--gates", str(path)]
    assert main([*edit, *common]) == 0 and (tmp_path / "out" / "edit-0.png").exists()
    assert "of the modules were not computed" in capsys.readouterr().out
    assert main([*edit, *common, "--steps", "6"]) == 2 and "these gates are for 4 steps" in capsys.readouterr().err
