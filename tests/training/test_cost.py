"""What is told of a training's cost is what small models are measured to take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from lazydiff.cli.main import main
from lazydiff.data.batch import Batch
from lazydiff.model.config import PIXART_1024, ModelConfig
from lazydiff.model.latent_space import PreparedLatents
from lazydiff.model.layers import explicit_attention, sdpa
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.model.text import PreparedText
from lazydiff.training.config import CONFIGS, TrainingConfig
from lazydiff.training.cost import TrainingCost
from lazydiff.training.engine import checkpoint_blocks, parameter_groups
from lazydiff.training.objective import Objective

GRID, ROWS, LENGTH = 16, 4, 20  # tokens per side, of which so many rows are hole, and tokens of text
KINDS = {"lazy": {}, "dense": {"encoder_depth": 0}, "four noise levels": {}, "rotary": {"rotary": True}}


def config_of(kind: str, **settings: object) -> TrainingConfig:
    network = replace(
        PIXART_1024, canvas=16 * GRID, width=192, heads=8, decoder_depth=10, encoder_depth=5, text_width=64,
        text_length=LENGTH,
    )  # fmt: skip
    model = ModelConfig(replace(network, **KINDS[kind]), "iddpm")
    plain = TrainingConfig(model, batch=2, noise_levels=4 if kind == "four noise levels" else 1, precision="no")
    return replace(plain, **settings)  # type: ignore[arg-type]


def objective_of(config: TrainingConfig, attention: object = sdpa) -> Objective:
    parts = PreparedText(), PreparedLatents(4)
    model = LazyDiffusion(config.model, *parts, attention=attention)
    model.initialise(0)
    return Objective(model, config)


def batch_of(config: TrainingConfig) -> Batch:
    number, side = config.batch, config.model.network.canvas
    mask = torch.zeros(number, 1, side, side, dtype=torch.uint8)
    mask[:, :, : 16 * ROWS] = 1
    text = [torch.randn(LENGTH, 64).half() for _ in range(number)]
    latents = torch.randn(number, 3, 4, side // 8, side // 8).half()
    return Batch(list(range(number)), mask, [""] * number, None, latents, text, text)


def cost_of(config: TrainingConfig) -> TrainingCost:
    return TrainingCost(config, hole=ROWS / GRID)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_what_the_optimiser_keeps_of_them(kind: str) -> None:
    """Exact, but for the optimiser's count of steps."""
    config = config_of(kind)
    model, cost = objective_of(config).model, cost_of(config)
    assert cost.parameters["decoder"] == sum(p.numel() for p in model.decoder.parameters())
    assert cost.parameters["encoder"] == sum(p.numel() for p in model.encoder.parameters())
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moments = [value for state in optimiser.state.values() for value in state.values() if value.ndim]
    told, parameters = cost.memory(), list(model.parameters())
    assert told["AdamW's moments"] == sum(value.nbytes for value in moments)
    assert told["weights"] == told["gradients"] == told["average"] == sum(value.nbytes for value in parameters)
    shares = TrainingCost(replace(config, readers=2), 2, 0.25).memory(sharded=True)
    assert shares["weights"] == -(-told["weights"] // 2) and "weights in half precision" not in shares


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_multiply_adds(kind: str, checkpointing: bool) -> None:
    """Within 3 %: the embeddings of time and size, and what need not be derived by the input, are left out."""
    config = config_of(kind, checkpointing=checkpointing)
    objective = objective_of(config, explicit_attention)
    if checkpointing:
        checkpoint_blocks(objective.model)
    with FlopCounterMode(display=False) as counter:
        objective(batch_of(config), 0).backward()
    measured = counter.get_total_flops() / 2 / config.batch
    assert cost_of(config).macs() == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_activations(kind: str, checkpointing: bool, precision: str) -> None:
    """Within 10 %: what the loss keeps is left out, of which a network this narrow has much. With checkpointing
    blocks keep what they are called with, and to what is seen one block comes that is computed again at a time."""
    config = config_of(kind, checkpointing=checkpointing, precision=precision)
    objective, network = objective_of(config), config.model.network
    shapes = {parameter.shape for parameter in objective.parameters()}
    kept = {}

    def pack(value: Tensor) -> Tensor:
        if value.shape not in shapes and not (value.ndim == 2 and value.mT.shape in shapes):  # weights, as autocast's
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    if checkpointing:
        checkpoint_blocks(objective.model)
        for block in [*objective.model.encoder.blocks, *objective.model.decoder.blocks]:
            block.register_forward_pre_hook(lambda block, given: tree_map_only(Tensor, pack, given) and None)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), half:
        objective(batch_of(config), 0)
    measured, told = sum(storage.nbytes() for storage in kept.values()), cost_of(config).activations()
    if checkpointing:
        blocks = {"lazy": 16 * GRID, "rotary": 17 * GRID, "dense": 23 * GRID, "four noise levels": 4 * 23 * ROWS}
        block = GRID * blocks[kind]
        measured += config.batch * network.width * block * (2 if precision == "bf16" else 4)
    assert told == pytest.approx(measured, rel=0.1)


def test_formulas_at_full_size() -> None:
    """Against numbers of the specification: 611.3 M + 2.7 M and 191.4 M parameters, 6.5 T multiply-adds of a guided
    pair of full decoder calls with 120 tokens of text, 1.25 T of the encoder."""
    cost = TrainingCost(TrainingConfig.read(CONFIGS["pixart-1024"]), hole=1.0)
    assert {name: round(count / 1e6, 1) for name, count in cost.parameters.items()} == {
        "encoder": 191.4, "decoder": 614.0,
    }  # fmt: skip
    assert cost.macs(checkpointing=False) / 3 == pytest.approx((13.06 / 4 + 2.494 / 2) * 1e12, rel=0.01)
    assert 1.31 < cost.macs() / cost.macs(checkpointing=False) < 1.33  # about one forward pass more
    assert cost.hours(100) == pytest.approx(2 * cost.macs() * 224 * 1e5 / 1e14 / 3600)
    state = sum(cost.memory()[name] for name in ("weights", "gradients", "AdamW's moments", "average"))
    assert state / 1e9 == pytest.approx(16.1, abs=0.1)


def test_the_command_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--training", "pixart-1024", "--processes", "8", "--tflops", "150"]) == 0
    told = capsys.readouterr().out
    for words in ("encoder 191.4 M, decoder 614.0 M", "28 at a time", "594 tokens", " hours of one card", "FSDP2"):
        assert words in told
    for wrong, words in (
        (["--training", "pixart"], "pixart: there is no such file"),
        (["--training", "pixart-512", "--processes", "3"], "3 processes cannot share readers = 8"),
        (["--training", "pixart-512", "--hole", "1.5"], "hole is 1.5"),
        (["--training", "pixart-512", "--tflops", "-1"], "--tflops is -1.0"),
    ):
        assert main(["info", *wrong]) == 2
        assert words in capsys.readouterr().err
