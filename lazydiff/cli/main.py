"""Arguments of the commands, and what they have in common: one clear line for an error, a clean stop on Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from ..model.checkpoint import SHIPPED
from ..model.config import ModelConfig, Sampling
from ..pipeline.decode import Blend
from ..sampling.samplers import SAMPLERS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 2 for input that cannot be used, 130 when it was stopped."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser("lazydiff", description="Local edits whose cost follows the mask, not the canvas.")
    commands = root.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="chain edits on a blank canvas and on a scene, and draw a storyboard")
    demo.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for the pictures (%(default)s)")
    add_sampling(demo)
    demo.set_defaults(run=run_demo)

    edit = commands.add_parser("edit", help="generate what a mask covers, one picture per seed")
    edit.add_argument("--image", type=Path, required=True, help="the canvas, an RGB picture")
    where = edit.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", type=Path, help="a picture of the canvas's size, white = generate")
    where.add_argument("--box", type=int, nargs=4, metavar=("X", "Y", "W", "H"), help="a rectangle instead of a mask")
    edit.add_argument("--prompt", required=True, help="what to put there")
    edit.add_argument("--negative", default="", help="what to stay away from")
    edit.add_argument("--seed", type=int, nargs="+", default=[0], help="one variation each, all from one encoding")
    edit.add_argument("--sketch", type=Path, help="a picture of the canvas's size with colours to start from")
    edit.add_argument("--strength", type=float, default=0.8, help="how far a sketch may be changed, 0…1 (%(default)s)")
    edit.add_argument("--blend", choices=get_args(Blend), default="poisson", help="how the hole joins (%(default)s)")
    edit.add_argument("--output", type=Path, required=True, help="folder for edit-SEED.png")
    edit.add_argument("--gates", type=Path, help="a file of trained gates: modules that barely change are skipped")
    add_sampling(edit)
    edit.set_defaults(run=run_edit)

    train = commands.add_parser("train", help="train a model, or go on with a run that was stopped")
    train.add_argument("--config", type=Path, default=SHIPPED.with_suffix(".toml"))
    train.add_argument("--output", type=Path, default=Path("output/train"), help="folder of the run (%(default)s)")
    train.add_argument("--steps", type=int, help="instead of the configuration's")
    train.set_defaults(run=run_train)

    gates = commands.add_parser("gates", help="train which modules a model can do without, at every second step")
    gates.add_argument("--output", type=Path, required=True, help="the file to write, NAME.gates.safetensors")
    gates.add_argument("--penalty", type=float, help="of a module that is computed: more of it, more skips")
    gates.add_argument("--updates", type=int, help="of the gates' weights")
    gates.add_argument("--scenes", type=int, help="in each update")
    add_sampling(gates)
    gates.set_defaults(run=run_gates)

    evaluate = commands.add_parser("evaluate", help="measure a model on held-out scenes")
    evaluate.add_argument("--output", type=Path, required=True, help="folder for numbers, a table and a picture")
    evaluate.add_argument("--scenes", type=int, help="held-out scenes per question (500, with baselines 200)")
    evaluate.add_argument("--quick", action="store_true", help="few scenes, to see that it runs")
    evaluate.add_argument("--baselines", action="store_true", help="compare with the two that compute every token")
    evaluate.add_argument("--checkpoint", type=Path, default=SHIPPED)
    evaluate.set_defaults(run=run_evaluate)

    info = commands.add_parser("info", help="what a checkpoint is made of")
    info.add_argument("--checkpoint", type=Path, default=SHIPPED)
    info.set_defaults(run=run_info)
    return root


def add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, help="the checkpoint's own if not given, like the next three")
    command.add_argument("--guidance", type=float, help="how strongly the prompt is followed; 1 = as trained")
    command.add_argument("--sampler", choices=SAMPLERS)
    command.add_argument("--temperature", type=float, help="of the fresh noise of the ancestral sampler")
    command.add_argument("--checkpoint", type=Path, default=SHIPPED)


def chosen(options: argparse.Namespace, config: ModelConfig) -> Sampling:
    """The checkpoint's sampling settings with what the user has changed."""
    names = ("steps", "guidance", "sampler", "temperature")
    return replace(config.sampling, **{name: value for name in names if (value := getattr(options, name)) is not None})


# Commands import what only they need, so that each starts quickly and asks for no package that it does not use.


def run_demo(options: argparse.Namespace) -> None:
    from ..model.checkpoint import load_checkpoint
    from .demo import demo
    from .files import writable_folder

    folder = writable_folder(options.output)
    model = load_checkpoint(options.checkpoint)
    demo(model, chosen(options, model.config), folder)


def run_edit(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..cache.module_skip import load_gates
    from ..model.checkpoint import load_checkpoint
    from ..pipeline.edit import edit
    from ..pipeline.sample import SampleSettings
    from .files import box_mask, read_image, read_mask, save_picture, writable_folder

    image = read_image(options.image)
    mask = read_mask(options.mask) if options.mask else box_mask(image, *options.box)
    sketch = read_image(options.sketch) if options.sketch else None
    folder = writable_folder(options.output)
    model = load_checkpoint(options.checkpoint)
    sampling = chosen(options, model.config)
    gates = load_gates(options.gates) if options.gates else None
    with tqdm(total=sampling.steps, unit="step", leave=False) as bar:
        settings = SampleSettings(sampling, options.negative, sketch, options.strength, gates)
        results = edit(
            model, image, mask, options.prompt, options.seed, settings, blend=options.blend,
            callback=lambda done, total, x0: bar.update(),
        )  # fmt: skip
    if gates is not None:
        print(f"{gates.ratio:.0%} of the modules were not computed")
    for seed, result in zip(options.seed, results, strict=True):
        print(save_picture(result, folder / f"edit-{seed}.png"))


def run_train(options: argparse.Namespace) -> None:
    from ..evaluation.regenerate import paint_baseline
    from ..training.config import TrainingConfig
    from ..training.pictures import paint_lazy
    from ..training.train import train

    config = TrainingConfig.read(options.config, steps=options.steps)
    paint = partial(paint_baseline, crop=config.crop) if config.model.network.dense else paint_lazy
    print(train(config, options.output, paint))


def run_gates(options: argparse.Namespace) -> None:
    from ..model.checkpoint import load_checkpoint
    from ..model.layers import explicit_attention
    from ..training.gates import GateTraining, train_gates
    from .files import writable_folder

    writable_folder(options.output.parent)
    model = load_checkpoint(options.checkpoint, attention=explicit_attention)
    given = {
        "attention_penalty": options.penalty, "mlp_penalty": options.penalty, "steps": options.updates,
        "scenes": options.scenes,
    }  # fmt: skip
    training = GateTraining(**{name: value for name, value in given.items() if value is not None})
    gates = train_gates(model, chosen(options, model.config), training, options.output)
    share = sum(map(sum, gates.fixed().table)) / gates.scores.numel()
    print(f"{options.output}: {share:.0%} of the modules will not be computed")


def run_evaluate(options: argparse.Namespace) -> None:
    from ..evaluation import evaluate, evaluate_baselines
    from ..evaluation.regenerate import WEIGHTS
    from ..model.checkpoint import load_checkpoint
    from .files import writable_folder

    folder = writable_folder(options.output)
    model, report = load_checkpoint(options.checkpoint), folder / "evaluation.md"
    number = {} if options.scenes is None else {"scenes": options.scenes}
    if options.baselines:
        image, crop = (load_checkpoint(WEIGHTS / f"regenerate-{kind}.safetensors") for kind in ("image", "crop"))
        evaluate_baselines(model, image, crop, folder, quick=options.quick, **number)
        report = folder / "baselines.md"
    else:
        evaluate(model, folder, quick=options.quick, **number)
    print(report.read_text("utf-8"))


def run_info(options: argparse.Namespace) -> None:
    from ..model.checkpoint import load_checkpoint
    from .info import describe

    print(describe(load_checkpoint(options.checkpoint), options.checkpoint))
