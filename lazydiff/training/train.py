"""The training loop on accelerate: one CPU process or many GPUs, resumable at any time without losing or repeating a
step."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..model.checkpoint import save_checkpoint
from ..model.config import ModelConfig
from ..model.layers import AttentionFunction, explicit_attention, sdpa
from ..model.lazydiffusion import LazyDiffusion
from ..model.text import train_vocabulary
from ..scenes import all_captions, random_sample, vocabulary
from .config import TrainingConfig
from .data import SceneStream, collate
from .objective import Objective
from .pictures import Paint, paint_lazy, sample_grid

VOCABULARY = 160  # pieces
FIT_SCENES = 400  # from which the latent space is measured


def train(config: TrainingConfig, output: Path, paint: Paint = paint_lazy) -> Path:
    """Train, or go on where the last checkpoint in `output` stopped; returns the path of the finished model.

    paint: makes the sample grids' pictures

    Writes log.csv, a sample grid every `picture_every` steps and model.safetensors (averaged weights, half precision).
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=config.precision,
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    on_cpu = accelerator.device.type == "cpu"
    model = new_model(config.model, config.seed, explicit_attention if on_cpu else sdpa)
    objective = Objective(model, config)
    optimiser = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, config))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
    objective, optimiser = accelerator.prepare(objective, optimiser)
    average.to(accelerator.device)
    accelerator.register_for_checkpointing(schedule, average)

    log = Log(output / "log.csv")
    start = 0
    if (state := newest_state(output)) is not None:
        accelerator.load_state(str(state))
        start = int(state.name.split("-")[1])
        log.cut(start)
    batches = iter(loader(config, accelerator.process_index, start))

    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=not accelerator.is_main_process)
    for step in bar:
        generator = step_generator(config.seed, accelerator.process_index, step)
        with accelerator.autocast():
            loss = objective(next(batches), generator, step)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(objective.parameters(), config.clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        average.update_parameters(model)

        if accelerator.is_main_process:
            log.add(step, loss, norm, float(schedule.get_last_lr()[0]))
        done = step + 1
        if done % 50 == 0:
            bar.set_postfix(loss=f"{log.recent():.4f}")
        if done % config.checkpoint_every == 0 or done == config.steps:
            log.flush()
            save_state(accelerator, output, done)
            if accelerator.is_main_process:
                save_checkpoint(averaged(average), output / "model.safetensors", dtype=torch.float16)
        if (done % config.picture_every == 0 or done == config.steps) and accelerator.is_main_process:
            sample_grid(averaged(average), config.seed + 1, paint).save(output / f"samples-{done:06d}.png")
        accelerator.wait_for_everyone()
    return output / "model.safetensors"


def new_model(config: ModelConfig, seed: int, attention: AttentionFunction = sdpa) -> LazyDiffusion:
    """A model with fresh weights, its vocabulary and latent space measured on the world of scenes."""
    set_seed(seed)
    config = replace(config, words=tuple(sorted(vocabulary())))
    model = LazyDiffusion.self_contained(config, train_vocabulary(all_captions(), VOCABULARY), attention=attention)
    model.initialise(seed)
    rng = np.random.default_rng([seed, FIT_SCENES])
    images = collate([random_sample(rng) for _ in range(FIT_SCENES)]).image.float() / 127.5 - 1
    model.latent.fit(images)
    return model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases, norms and modulation tables do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p.shape[0] > 6]
    others = [p for p in model.parameters() if not (p.ndim >= 2 and p.shape[0] > 6)]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def rate(step: int, config: TrainingConfig) -> float:
    """Learning rate as a share of the full one: linear warm-up, constant, linear decay to zero."""
    begin = config.decay_from * config.steps
    decay = 1.0 if step < begin else (config.steps - step) / (config.steps - begin)
    return min((step + 1) / config.warm_up, 1.0) * decay


def loader(config: TrainingConfig, rank: int, start: int) -> DataLoader:
    stream = SceneStream(config.seed, rank, config.scenes, config.model.network.token, start=start)
    return DataLoader(stream, batch_size=None, num_workers=config.workers)


def step_generator(*numbers: int) -> torch.Generator:
    """All randomness of one step of one process, whatever came before it."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def averaged(average: AveragedModel) -> LazyDiffusion:
    model = average.module.eval()
    assert isinstance(model, LazyDiffusion)
    return model


def newest_state(output: Path) -> Path | None:
    states = sorted(output.glob("state-*"), key=lambda path: int(path.name.split("-")[1]))
    return states[-1] if states else None


def save_state(accelerator: Accelerator, output: Path, step: int) -> None:
    """Write the whole state beside the old one, and only then remove the old one."""
    previous = newest_state(output)
    unfinished = output / "unfinished"
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished.rename(output / f"state-{step}")
        if previous is not None:
            shutil.rmtree(previous)


class Log:
    """log.csv: one row per step, cut back to the checkpoint when a run goes on."""

    columns = ("step", "loss", "gradient_norm", "learning_rate")

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[tuple[int, torch.Tensor, torch.Tensor | float, float]] = []
        if not path.exists():
            path.write_text(",".join(self.columns) + "\n")

    def add(self, step: int, loss: torch.Tensor, norm: torch.Tensor | float, rate: float) -> None:
        self.rows.append((step, loss.detach(), norm, rate))

    def recent(self) -> float:
        rows = self.rows[-50:]
        return sum(float(loss) for _, loss, _, _ in rows) / max(len(rows), 1)

    def flush(self) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(
                (step, f"{float(loss):.5f}", f"{float(norm):.4f}", f"{rate:.3e}")
                for step, loss, norm, rate in self.rows
            )
        self.rows.clear()

    def cut(self, start: int) -> None:
        lines = self.path.read_text().splitlines(keepends=True)
        self.path.write_text("".join(lines[: 1 + start]))
