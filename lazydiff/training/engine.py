"""How a step is computed: on one process or many, with whole copies of the model or a part on each (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ..core.checks import check_choice
from ..data.batch import Batch
from ..model.layers import CrossAttention, Mlp, SelfAttention
from ..model.lazydiffusion import LazyDiffusion
from .config import TrainingConfig
from .muon import MuonAdamW
from .objective import Objective


@dataclass(frozen=True)
class Launch:
    """Where a training runs and who watches it: what may change each time that it goes on.

    device: the GPU where there is one, if not given
    sharded: every process keeps a part of weights, gradients and moments (FSDP2) instead of a copy (DDP)
    tracker: one of accelerate's, e.g. tensorboard
    """

    device: torch.device | None = None
    sharded: bool = False
    tracker: str | None = None

    def accelerator(self, config: TrainingConfig, output: Path) -> Accelerator:
        """Errors: ValueError for what cannot be computed here, or a tracker that is not there."""
        if self.sharded and config.precision == "fp16":
            raise ValueError("precision is fp16: a model that is sharded is trained in bf16 or no")
        if self.sharded and config.compile:
            raise ValueError("compile is true: a model that is sharded is not compiled")
        if self.sharded and config.optimiser == "muon":
            raise ValueError("optimiser is muon, which takes whole matrices: a model that is sharded has none")
        if self.tracker is not None:
            check_choice("tracker", self.tracker, list(LOGGER_TYPE_TO_CLASS))
            if self.tracker not in map(str, get_available_trackers()):
                raise ValueError(f"the tracker {self.tracker} has no package here: pip install {self.tracker}")
        cpu = not torch.cuda.is_available() if self.device is None else self.device.type == "cpu"
        accelerator = Accelerator(
            cpu=cpu, mixed_precision=config.precision, log_with=self.tracker, project_dir=output,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )  # fmt: skip
        config.micro_batch(accelerator.num_processes)
        return accelerator


class Engine:
    """An objective on the devices of a training, with its optimiser."""

    def __init__(self, objective: Objective, config: TrainingConfig, accelerator: Accelerator, sharded: bool):
        self.accelerator, self.clip = accelerator, config.clip
        self.sharded = sharded and accelerator.num_processes > 1
        if config.checkpointing:
            checkpoint_blocks(objective.model)
        if config.compile:
            compile_blocks(objective.model)
        if self.sharded:
            shard(objective, accelerator, config.precision)
        muon = config.optimiser == "muon"
        optimiser = (MuonAdamW if muon else torch.optim.AdamW)(
            parameter_groups(objective.model, config.weight_decay, muon),
            lr=config.learning_rate, betas=config.betas, eps=config.eps,
        )  # fmt: skip
        self.objective = objective if self.sharded else accelerator.prepare(objective)
        self.optimiser = accelerator.prepare(optimiser)

    def step(self, batches: Sequence[Batch], number: int) -> tuple[Tensor, Tensor]:
        """Take one optimiser step; returns loss and length of its gradient, those of all processes together.

        batches: the micro-batches of this process, of one size
        """
        losses = []
        for i, batch in enumerate(batches, start=1):
            with self.together(i == len(batches)), self.accelerator.autocast():
                loss = self.objective(batch, number) / len(batches)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return self.accelerator.reduce(torch.stack(losses).sum(), "mean"), whole_norm(norm)

    def together(self, last: bool) -> Any:
        """Processes add up their gradients after the last micro-batch; sharded ones after each, because what waited
        would be gradients of the whole model."""
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(self.objective)


def whole_norm(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def parameter_groups(model: LazyDiffusion, weight_decay: float, muon: bool = False) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and modulation tables do not. muon: those of blocks are a group of their own."""
    blocks = [*model.encoder.blocks, *model.decoder.blocks] if muon else []
    inside = {id(p) for block in blocks for p in block.parameters()}
    turned: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for p in model.parameters():
        matrix = p.ndim >= 2 and p.shape[0] > 6
        (others if not matrix else turned if id(p) in inside else matrices).append(p)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0},
    ]  # fmt: skip
    return [*groups, {"params": turned, "weight_decay": weight_decay, "muon": True}] if muon else groups


def checkpoint_blocks(model: LazyDiffusion) -> None:
    """Let encoder and decoder keep the inputs of their blocks alone, and compute all else again in the backward pass.

    Nothing is drawn at random in a block. Source: Chen et al. 2016.
    """
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compile_blocks(model: LazyDiffusion) -> None:
    """Let encoder and decoder compute what lies between their matrices in one go, for any number of tokens.

    Block by block, because in whole networks much would be compiled that runs once.
    """
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.compile(dynamic=True)


def shard(objective: Objective, accelerator: Accelerator, precision: str) -> None:
    """Spread the parameters over all processes; each module of a block brings its own together when it is called.

    Not the blocks: the decoder reads their tables and calls their `kv_linear` before them. What is left belongs to the
    objective and is together for the whole step. The matrices travel in the type that autocast multiplies them in.
    """
    # It warns of outputs that are views, for those who would change them in place: our blocks add out of place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    half = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16" else {}
    policy = MixedPrecisionPolicy(**half, cast_forward_inputs=False)
    for module in spread_modules(objective.model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh)


def spread_modules(model: LazyDiffusion) -> list[nn.Module]:
    """The modules of the blocks that bring their parameters together one by one, inner ones first."""
    inside = [*model.encoder.blocks.modules(), *model.decoder.blocks.modules()]
    keys = [module.kv_linear for module in inside if isinstance(module, CrossAttention)]
    return keys + [module for module in inside if isinstance(module, SelfAttention | CrossAttention | Mlp)]
