"""`train`, and what a training would cost: their arguments, and what they make of them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .devices import add_device, choose_device

if TYPE_CHECKING:  # training needs packages that other commands do without
    from ..training.config import TrainingConfig
    from ..training.start import Material

PRECISIONS = ("no", "bf16", "fp16")


def add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train a model, or go on with a run that was stopped")
    train.add_argument(
        "--config", default="lazydiffusion-small", help="a TOML file, or the name of one of the package's (%(default)s)"
    )
    train.add_argument("--output", type=Path, default=Path("output/train"), help="folder of the run (%(default)s)")
    train.add_argument("--data", help="prepared shards, e.g. 'shards/*.tar'; the built-in scenes if not given")
    train.add_argument("--vae", type=Path, help="of shards with latents: what sample pictures are decoded with")
    train.add_argument(
        "--initialise", type=Path, metavar="WEIGHTS",
        help="to begin with: PixArt-α's, a file or folder, or a model.safetensors that was trained before",
    )
    train.add_argument("--steps", type=int, help="instead of the configuration's, like the next two")
    train.add_argument("--precision", choices=PRECISIONS, help="of the multiplications")
    train.add_argument("--accumulate", type=int, help="parts in which a process computes its share of a step")
    train.add_argument(
        "--sharded", action="store_true", help="each process keeps a part of the weights (FSDP2) instead of all"
    )
    train.add_argument("--tracker", help="one of accelerate's beside log.csv, e.g. tensorboard")
    add_device(train)
    train.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> None:
    from ..training.config import TrainingConfig, find_config
    from ..training.engine import Launch
    from ..training.train import train
    from .files import writable_folder

    changes = {name: getattr(options, name) for name in ("steps", "precision", "accumulate")}
    config = TrainingConfig.read(find_config(options.config), **changes)
    launch = Launch(choose_device(options.device), options.sharded, options.tracker)
    material = chosen_material(options, config)
    print(train(config, writable_folder(options.output), material, launch))


def chosen_material(options: argparse.Namespace, config: TrainingConfig) -> Material:
    """Errors: ValueError for shards that cannot be read, or a VAE that they were not prepared with."""
    from ..data.stream import ShardExamples
    from ..evaluation.regenerate import paint_baseline
    from ..model.pretrained import load_vae, pretrained_fingerprint
    from ..training.pictures import Gallery, paint_lazy
    from ..training.start import Material

    paint = partial(paint_baseline, crop=config.crop) if config.model.network.dense else paint_lazy
    if options.data is None:
        if options.vae is not None:
            raise ValueError("--vae is for prepared shards: give --data too")
        return Material.scenes(config, options.initialise, paint)
    examples = ShardExamples(options.data, config.seed)
    examples.check_readers(config.readers)
    vae, made_with = None, examples.header.vae
    if options.vae is not None:
        vae = load_vae(options.vae)
        if made_with is None or made_with.fingerprint != pretrained_fingerprint(vae):
            raise ValueError(f"{options.vae} is not the VAE that {options.data} was prepared with")
    gallery = Gallery.of_shards(options.data, vae) if vae is not None or made_with is None else None
    return Material(examples, options.initialise, gallery, paint)


def add_cost(info: argparse.ArgumentParser) -> None:
    info.add_argument("--training", metavar="CONFIG", help="instead of a checkpoint: what such a training would take")
    info.add_argument("--processes", type=int, default=1, help="of that training (%(default)s)")
    info.add_argument("--accumulate", type=int, help="as of train")
    info.add_argument("--tflops", type=float, help="that a card reaches, to tell the time")
    info.add_argument("--hole", type=float, help="mean share of the canvas in the holes, 0…1 (0.145)")


def print_cost(options: argparse.Namespace) -> None:
    from ..training.config import TrainingConfig, find_config
    from ..training.cost import HOLE, TrainingCost, cost_text

    config = TrainingConfig.read(find_config(options.training), accumulate=options.accumulate)
    cost = TrainingCost(config, options.processes, HOLE if options.hole is None else options.hole)
    cost.check()
    if options.tflops is not None and not options.tflops > 0:
        raise ValueError(f"--tflops is {options.tflops}: choose a number above 0")
    print(cost_text(cost, options.tflops))
