"""The training loop: one CPU process or many GPUs, resumable at any time without losing or repeating a step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..core.files import whole_file
from ..core.locks import alone
from ..data.batch import Batch
from ..data.stream import ExampleStream, ReadingPlan, read_batches
from ..model.checkpoint import save_checkpoint
from ..model.layers import explicit_attention, sdpa
from ..model.lazydiffusion import LazyDiffusion
from .average import Average, blank_copy, filled_copy, whole
from .config import TrainingConfig
from .engine import Engine, Launch
from .log import Log
from .objective import Objective
from .pictures import sample_grid
from .start import Material, first_model
from .state import State, newest_state, settings_record

LEFT = re.compile(r"\.(model\.safetensors|log\.csv|samples-\d+\.png)\.\d+")  # by one that was killed as it wrote
SHOWN = 50  # steps between two losses in the progress bar


def train(
    config: TrainingConfig, output: Path, material: Material | None = None, launch: Launch | None = None
) -> Path:
    """Train, or go on where the last state in `output` stopped; returns the path of the finished model.

    material: the built-in scenes, if not given
    launch: one process or many, and where; the GPU where there is one, if not given

    Writes log.csv, a sample grid every `picture_every` steps and model.safetensors (averaged weights, half precision).
    Errors: ValueError for settings that no training can have, a folder where another one is at work, a state of another
    training or a damaged one, weights that do not fit, all before work begins; and for a loss that is not a number.
    """
    config.check()
    material, launch = material or Material.scenes(config), launch or Launch()
    accelerator = launch.accelerator(config, output)
    output.mkdir(parents=True, exist_ok=True)
    with alone(output, "training") if accelerator.is_main_process else nullcontext():
        return Training(config, output, material, accelerator, launch.sharded).run()


class Training:
    """One run: its model, its optimiser, and the files that it leaves."""

    def __init__(
        self, config: TrainingConfig, output: Path, material: Material, accelerator: Accelerator, sharded: bool
    ):
        self.config, self.output, self.material, self.accelerator = config, output, material, accelerator
        attention = explicit_attention if accelerator.device.type == "cpu" else sdpa
        self.model, initial = first_model(config, material, attention)
        self.record = settings_record(config, material.examples, initial)
        self.blank = blank_copy(self.model)
        header = material.examples.header
        uncropped = config if header is None or not header.crop else replace(config, crop=False)
        self.engine = Engine(Objective(self.model, uncropped), config, accelerator, sharded)
        self.average = Average(self.model, config.ema)
        optimiser: torch.optim.Optimizer = self.engine.optimiser.optimizer
        self.state = State(self.model, self.average, optimiser, accelerator.scaler)
        self.writes = accelerator.is_main_process
        self.log = Log(output / "log.csv", self.writes)

    def run(self) -> Path:
        start = self.resume()
        config = self.config
        if start == config.steps:
            return self.model_path
        if self.accelerator.log_with:
            self.accelerator.init_trackers(config.model.name)
        schedule = torch.optim.lr_scheduler.LambdaLR(self.state.optimiser, lambda step: rate(start + step, config))
        batches = self.batches(start)
        bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=not self.writes)
        for step in bar:
            loss, norm = self.engine.step(next(batches), step)
            self.average.update(first=step == 0)
            [learning_rate] = {group["lr"] for group in self.state.optimiser.param_groups}
            schedule.step()
            self.log.add(step, loss, norm, float(learning_rate))

            done = step + 1
            if done % SHOWN == 0:
                bar.set_postfix(loss=f"{self.log.recent(SHOWN):.4f}")
            if done % config.checkpoint_every == 0 or done == config.steps:
                self.keep(done)
            if self.pictured(done):
                self.draw(done)
        for tracker in self.accelerator.trackers if self.writes else ():
            tracker.finish()
        return self.model_path

    def batches(self, start: int) -> Iterator[list[Batch]]:
        """The share of each step that this process computes."""
        config, process, processes = self.config, self.accelerator.process_index, self.accelerator.num_processes
        plan = ReadingPlan(config.seed, config.batch, config.readers, config.model.network.token)
        each = config.readers // processes
        stream = ExampleStream(self.material.examples, plan, range(process * each, (process + 1) * each), start)
        return read_batches(stream, config.accumulate, config.workers)

    def resume(self) -> int:
        """The step to go on from, with everything there that a training leaves behind up to it."""
        state = None
        if self.writes:
            for path in self.output.iterdir():
                if LEFT.fullmatch(path.name):
                    path.unlink()
            state = newest_state(self.output)
        self.accelerator.wait_for_everyone()
        if not self.writes:
            state = newest_state(self.output)
        if state is None:
            self.log.cut(0)
            return 0
        start, path = state
        self.record = self.state.load(path, self.record)
        self.log.cut(start)
        self.publish()  # it may have been killed before it had written these
        if self.pictured(start) and not self.grid_path(start).exists():
            self.draw(start)
        return start

    def keep(self, done: int) -> None:
        """Leave what the training can go on from."""
        for step, values in self.log.flush():
            self.accelerator.log(values, step)
        self.state.save(self.output, done, self.record, self.writes)
        self.publish()

    @property
    def model_path(self) -> Path:
        return self.output / "model.safetensors"

    def publish(self) -> None:
        model = self.averaged()
        if self.writes:
            save_checkpoint(model, self.model_path, dtype=torch.float16)

    def pictured(self, done: int) -> bool:
        due = done % self.config.picture_every == 0 or done == self.config.steps
        return due and self.material.gallery is not None

    def grid_path(self, done: int) -> Path:
        return self.output / f"samples-{done:06d}.png"

    def draw(self, done: int) -> None:
        model, gallery = self.averaged(), self.material.gallery
        if self.writes and gallery is not None:
            with whole_file(self.grid_path(done)) as unfinished:
                grid = sample_grid(model.to(self.accelerator.device), gallery, self.material.paint)
                grid.save(unfinished, "png")

    def averaged(self) -> LazyDiffusion:
        """The model of the averaged weights; of a sharded training that of the main process alone has any."""
        weights = {name: whole(value, self.writes) for name, value in self.average.parameters.items()}
        return filled_copy(self.blank, weights | dict(self.model.named_buffers()))




def rate(step: int, config: TrainingConfig) -> float:
    """Learning rate as a share of the full one: linear warm-up, constant, linear decay to zero."""
    begin = config.decay_from * config.steps
    decay = 1.0 if step < begin or begin == config.steps else (config.steps - step) / (config.steps - begin)
    return min((step + 1) / max(config.warm_up, 1), 1.0) * decay


def step_generator(*numbers: int) -> torch.Generator:
    """All randomness of one step, whatever came before it."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
