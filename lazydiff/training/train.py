"""The training loop on accelerate: one CPU process or many GPUs, resumable at any time without losing or repeating a
step."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..core.files import whole_file
from ..core.locks import alone
from ..data.batch import Batch
from ..data.stream import ExampleStream, ReadingPlan, SceneExamples, read_batches
from ..model.checkpoint import save_checkpoint
from ..model.config import ModelConfig
from ..model.layers import AttentionFunction, explicit_attention, sdpa
from ..model.lazydiffusion import LazyDiffusion
from ..model.text import train_vocabulary
from ..scenes import all_captions, random_sample, vocabulary
from .config import TrainingConfig
from .objective import Objective
from .pictures import Gallery, Paint, paint_lazy, sample_grid
from .state import State, newest_state, settings_record

VOCABULARY = 160  # pieces
FIT_SCENES = 400  # from which the latent space is measured
LEFT = re.compile(r"\.(model\.safetensors|log\.csv|samples-\d+\.png)\.\d+")  # by one that was killed as it wrote


def train(config: TrainingConfig, output: Path, paint: Paint = paint_lazy, device: torch.device | None = None) -> Path:
    """Train, or go on where the last state in `output` stopped; returns the path of the finished model.

    paint: makes the sample grids' pictures
    device: the GPU where there is one, if not given

    Writes log.csv, a sample grid every `picture_every` steps and model.safetensors (averaged weights, half precision).
    Errors: ValueError for settings that no training can have, a folder where another one is at work, a state of another
    training or a damaged one, all before work begins; and for a loss that is not a number any more.
    """
    config.check()
    accelerator = Accelerator(cpu=on_cpu(device), mixed_precision=config.precision)
    output.mkdir(parents=True, exist_ok=True)
    with alone(output, "training") if accelerator.is_main_process else nullcontext():
        return Training(config, output, paint, accelerator).run()


class Training:
    """One run: its model, its optimiser, and the files that it leaves."""

    def __init__(self, config: TrainingConfig, output: Path, paint: Paint, accelerator: Accelerator):
        self.config, self.output, self.paint, self.accelerator = config, output, paint, accelerator
        attention = explicit_attention if accelerator.device.type == "cpu" else sdpa
        self.model = new_model(config.model, config.seed, attention)
        optimiser = torch.optim.AdamW(
            parameter_groups(self.model, config.weight_decay), lr=config.learning_rate, betas=config.betas
        )
        average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
        self.average = average.to(accelerator.device)
        self.objective, self.optimiser = accelerator.prepare(Objective(self.model, config), optimiser)
        self.state = State(self.model, self.average, optimiser, accelerator.scaler)
        self.description = settings_record(config, accelerator.num_processes)
        self.log = Log(output / "log.csv")
        self.gallery = Gallery.of_scenes(config.seed + 1)

    def run(self) -> Path:
        start = self.resume()
        config = self.config
        if start == config.steps:
            return self.model_path
        schedule = torch.optim.lr_scheduler.LambdaLR(self.state.optimiser, lambda step: rate(start + step, config))
        batches = self.batches(start)
        main = self.accelerator.is_main_process
        bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=not main)
        for step in bar:
            [batch] = next(batches)
            with self.accelerator.autocast():
                loss = self.objective(batch, step)
            self.accelerator.backward(loss)
            norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), config.clip)
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.average.update_parameters(self.model)
            [learning_rate] = {group["lr"] for group in self.optimiser.param_groups}
            schedule.step()

            if main:
                self.log.add(step, loss, norm, float(learning_rate))
            done = step + 1
            if done % 50 == 0:
                bar.set_postfix(loss=f"{self.log.recent():.4f}")
            if main and (done % config.checkpoint_every == 0 or done == config.steps):
                self.log.flush()
                self.state.save(self.output, done, self.description)
                self.publish()
            if main and self.pictured(done):
                self.draw(done)
            self.accelerator.wait_for_everyone()
        return self.model_path

    def batches(self, start: int) -> Iterator[list[Batch]]:
        config, processes, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        plan = ReadingPlan(config.seed, processes * config.scenes, processes, config.model.network.token)
        stream = ExampleStream(SceneExamples(config.seed), plan, range(rank, rank + 1), start)
        return read_batches(stream, 1, config.workers)

    def resume(self) -> int:
        """The step to go on from, with everything there that a training leaves behind up to it."""
        state = None
        if self.accelerator.is_main_process:
            for path in self.output.iterdir():
                if LEFT.fullmatch(path.name):
                    path.unlink()
            state = newest_state(self.output)
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            state = newest_state(self.output)
        if state is None:
            if self.accelerator.is_main_process:
                self.log.cut(0)
            return 0
        start, path = state
        self.state.load(path, self.description)
        if self.accelerator.is_main_process:
            self.log.cut(start)
            self.publish()  # it may have been killed before it had written these
            if self.pictured(start) and not self.grid_path(start).exists():
                self.draw(start)
        return start

    @property
    def model_path(self) -> Path:
        return self.output / "model.safetensors"

    def publish(self) -> None:
        save_checkpoint(averaged(self.average), self.model_path, dtype=torch.float16)

    def pictured(self, done: int) -> bool:
        return done % self.config.picture_every == 0 or done == self.config.steps

    def grid_path(self, done: int) -> Path:
        return self.output / f"samples-{done:06d}.png"

    def draw(self, done: int) -> None:
        with whole_file(self.grid_path(done)) as unfinished:
            sample_grid(averaged(self.average), self.gallery, self.paint).save(unfinished, "png")


def on_cpu(device: torch.device | None) -> bool:
    return not torch.cuda.is_available() if device is None else device.type == "cpu"


def new_model(config: ModelConfig, seed: int, attention: AttentionFunction = sdpa) -> LazyDiffusion:
    """A model with fresh weights, its vocabulary and latent space measured on the world of scenes."""
    set_seed(seed)
    config = replace(config, words=tuple(sorted(vocabulary())))
    model = LazyDiffusion.self_contained(config, train_vocabulary(all_captions(), VOCABULARY), attention=attention)
    model.initialise(seed)
    rng = np.random.default_rng([seed, FIT_SCENES])
    images = np.stack([random_sample(rng).image for _ in range(FIT_SCENES)])
    model.latent.fit(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases, norms and modulation tables do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p.shape[0] > 6]
    others = [p for p in model.parameters() if not (p.ndim >= 2 and p.shape[0] > 6)]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def rate(step: int, config: TrainingConfig) -> float:
    """Learning rate as a share of the full one: linear warm-up, constant, linear decay to zero."""
    begin = config.decay_from * config.steps
    decay = 1.0 if step < begin or begin == config.steps else (config.steps - step) / (config.steps - begin)
    return min((step + 1) / max(config.warm_up, 1), 1.0) * decay


def step_generator(*numbers: int) -> torch.Generator:
    """All randomness of one step of one process, whatever came before it."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def averaged(average: AveragedModel) -> LazyDiffusion:
    model = average.module.eval()
    assert isinstance(model, LazyDiffusion)
    return model


class Log:
    """log.csv: one row per step, cut back to the checkpoint when a run goes on."""

    columns = ("step", "loss", "gradient_norm", "learning_rate")

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[tuple[int, torch.Tensor, torch.Tensor | float, float]] = []
        header = ",".join(self.columns) + "\n"
        if not path.exists():
            path.write_text(header)
        elif not path.read_text("utf-8", errors="replace").startswith(header):
            raise ValueError(f"{path} is no log of a training: move it away, or choose another --output")

    def add(self, step: int, loss: torch.Tensor, norm: torch.Tensor | float, rate: float) -> None:
        self.rows.append((step, loss.detach(), norm, rate))

    def recent(self) -> float:
        rows = self.rows[-50:]
        return sum(float(loss) for _, loss, _, _ in rows) / max(len(rows), 1)

    def flush(self) -> None:
        """Errors: ValueError for a loss that is not a number: nothing that comes after it is worth keeping."""
        rows = [(step, float(loss), float(norm), rate) for step, loss, norm, rate in self.rows]
        self.rows.clear()
        if failed := [step for step, loss, _, _ in rows if not math.isfinite(loss)]:
            raise ValueError(f"the loss is not a number from step {failed[0]} on: choose a lower learning rate")
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                (step, f"{loss:.5f}", f"{norm:.4f}", f"{rate:.3e}") for step, loss, norm, rate in rows
            )

    def cut(self, start: int) -> None:
        lines = self.path.read_text().splitlines(keepends=True)
        with whole_file(self.path) as unfinished:
            unfinished.write_text("".join(lines[: 1 + start]))
