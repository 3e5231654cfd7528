"""Arguments of the commands, and what they have in common: one clear line for an error, a clean stop on Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..core.checks import shortened
from ..model.config import SAMPLERS, SHIPPED, ModelConfig, Sampling
from .devices import add_device, add_dtype, add_parts, load
from .evaluation import add_evaluate
from .prepare import add_prepare
from .training import add_cost, add_train, print_cost

BLENDS = ("poisson", "mixed", "paste")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 2 for what cannot be done, 130 when it was stopped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without our letters shows a question mark in their place
            stream.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        line = explanation(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


def explanation(error: Exception) -> str | None:
    """The one line for what a user can do something about; None for an error of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        missing = f": pip install {error.name.split('.')[0]}" if error.name else ""
        return text if "pip install" in text else f"a package is missing ({text}){missing}"
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return f"not enough memory: fewer seeds, a smaller picture or fewer scenes need less ({shortened(text, 120)})"
    return text if isinstance(error, ValueError | OSError) else None


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser("lazydiff", description="Local edits whose cost follows the mask, not the canvas.")
    commands = root.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="chain edits on a blank canvas and on a scene, and draw a storyboard")
    demo.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for the pictures (%(default)s)")
    add_sampling(demo)
    add_dtype(demo)
    add_parts(demo)
    demo.set_defaults(run=run_demo)

    edit = commands.add_parser("edit", help="generate what a mask covers, one picture per seed")
    edit.add_argument("--image", type=Path, required=True, help="the canvas, an opaque picture")
    where = edit.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", type=Path, help="a picture of the canvas's size, white or transparent = generate")
    where.add_argument("--box", type=int, nargs=4, metavar=("X", "Y", "W", "H"), help="a rectangle instead of a mask")
    edit.add_argument("--prompt", required=True, help="what to put there")
    edit.add_argument("--negative", default="", help="what to stay away from")
    edit.add_argument("--seed", type=int, nargs="+", default=[0], help="one variation each, all from one encoding")
    edit.add_argument("--sketch", type=Path, help="a picture of the canvas's size with colours to start from")
    edit.add_argument("--strength", type=float, default=0.8, help="how far a sketch may be changed, 0…1 (%(default)s)")
    edit.add_argument("--blend", choices=BLENDS, default="poisson", help="how the hole joins (%(default)s)")
    edit.add_argument("--output", type=Path, required=True, help="folder for edit-SEED.png")
    edit.add_argument("--gates", type=Path, help="a file of trained gates: modules that barely change are skipped")
    add_sampling(edit)
    add_dtype(edit)
    add_parts(edit)
    edit.set_defaults(run=run_edit)

    add_prepare(commands)

    add_train(commands)

    gates = commands.add_parser("gates", help="train which modules a model can do without, at every second step")
    gates.add_argument("--output", type=Path, required=True, help="the file to write, NAME.gates.safetensors")
    gates.add_argument("--penalty", type=float, help="of a module that is computed: more of it, more skips")
    gates.add_argument("--updates", type=int, help="of the gates' weights")
    gates.add_argument("--scenes", type=int, help="in each update")
    add_sampling(gates)
    gates.set_defaults(run=run_gates)

    clean_up = commands.add_parser("clean-up", help="train what hides cell borders in a model's decoded pictures")
    clean_up.add_argument("--checkpoint", type=Path, required=True, help="of a model with a latent space of its own")
    clean_up.add_argument("--data", required=True, help="prepared shards, e.g. 'shards/*.tar'")
    clean_up.add_argument("--output", type=Path, required=True, help="the checkpoint to write, NAME.safetensors")
    clean_up.add_argument("--steps", type=int, help="of the optimiser")
    clean_up.add_argument("--pictures", type=int, help="that are sampled first, to learn from")
    clean_up.add_argument("--width", type=int, help="channels of the convolutions")
    add_device(clean_up)
    clean_up.set_defaults(run=run_clean_up)

    add_evaluate(commands)

    info = commands.add_parser("info", help="what a checkpoint is made of, or what a training would take")
    info.add_argument("--checkpoint", type=Path, default=SHIPPED)
    add_cost(info)
    info.set_defaults(run=run_info)
    return root


def add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, help="the checkpoint's own if not given, like the next three")
    command.add_argument("--guidance", type=float, help="how strongly the prompt is followed; 1 = as trained")
    command.add_argument("--sampler", choices=SAMPLERS)
    command.add_argument("--temperature", type=float, help="of the fresh noise of the ancestral sampler")
    command.add_argument("--checkpoint", type=Path, default=SHIPPED)
    add_device(command)


def chosen(options: argparse.Namespace, config: ModelConfig) -> Sampling:
    """The checkpoint's sampling settings with what the user has changed. Errors: ValueError for what cannot be."""
    names = ("steps", "guidance", "sampler", "temperature")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    sampling = replace(config.sampling, **given)
    sampling.check()
    return sampling


# Commands import what only they need, so that each starts quickly and asks for no package that it does not use.


def run_demo(options: argparse.Namespace) -> None:
    from .demo import demo
    from .files import writable_folder

    folder = writable_folder(options.output)
    model = load(options.checkpoint, options)
    demo(model, chosen(options, model.config), folder)


def run_edit(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..cache.module_skip import load_gates
    from ..model.text import unknown_words
    from ..pipeline.edit import edit
    from ..pipeline.encode import check_rows, check_text
    from ..pipeline.sample import SampleSettings
    from .files import keep_inputs, save_picture, writable_folder
    from .pictures import box_mask, read_image, read_mask

    if len(set(options.seed)) < len(options.seed):
        raise ValueError("a seed is given twice: each makes one picture, choose different ones")
    check_rows([options.prompt] * len(options.seed), options.seed)
    check_text(options.negative)
    outputs = [options.output / f"edit-{seed}.png" for seed in options.seed]
    keep_inputs(outputs, [options.image, options.mask, options.sketch])
    image = read_image(options.image)
    mask = read_mask(options.mask) if options.mask else box_mask(image, *options.box)
    sketch = read_image(options.sketch) if options.sketch else None
    writable_folder(options.output)
    model = load(options.checkpoint, options)
    sampling = chosen(options, model.config)
    gates = load_gates(options.gates) if options.gates else None
    if unknown := unknown_words(options.prompt, model.config.words):
        print(f"note: words that this model does not know: {', '.join(unknown)}", file=sys.stderr)
    with tqdm(total=sampling.steps, unit="step", leave=False) as bar:
        settings = SampleSettings(
            sampling, options.negative, sketch, options.strength, gates, lambda done, total, x0: bar.update()
        )
        results = edit(model, image, mask, options.prompt, options.seed, settings, options.blend)
    if gates is not None:
        print(f"{gates.ratio:.0%} of the modules were not computed")
    for path, result in zip(outputs, results, strict=True):
        print(save_picture(result, path))


def run_gates(options: argparse.Namespace) -> None:
    from ..cache.module_skip import SUFFIX
    from ..model.layers import explicit_attention
    from ..training.gates import GateTraining, train_gates
    from .files import writable_file

    writable_file(options.output, SUFFIX)
    given = {
        "attention_penalty": options.penalty, "mlp_penalty": options.penalty, "steps": options.updates,
        "scenes": options.scenes,
    }  # fmt: skip
    training = GateTraining(**{name: value for name, value in given.items() if value is not None})
    training.check()
    model = load(options.checkpoint, options, attention=explicit_attention)
    gates = train_gates(model, chosen(options, model.config), training, options.output)
    share = sum(map(sum, gates.fixed().table)) / gates.scores.numel()
    print(f"{options.output}: {share:.0%} of the modules will not be computed")


def run_clean_up(options: argparse.Namespace) -> None:
    from ..training.clean_up import CleanUpTraining, train_clean_up
    from .files import keep_inputs, writable_file

    writable_file(options.output, ".safetensors")
    keep_inputs([options.output], [options.checkpoint])
    given = {name: value for name in ("steps", "pictures", "width") if (value := getattr(options, name)) is not None}
    training = CleanUpTraining(**given)
    training.check()
    train_clean_up(load(options.checkpoint, options), options.data, training, options.output)
    print(options.output)


def run_info(options: argparse.Namespace) -> None:
    from .info import checkpoint_text

    if options.training is not None:
        print_cost(options)
    else:
        print(checkpoint_text(options.checkpoint))
