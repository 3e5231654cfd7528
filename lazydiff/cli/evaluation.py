"""The command `evaluate`: on the built-in scenes, or on prepared shards of pictures that somebody brings."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..model.config import SHIPPED
from .devices import add_device, add_dtype, add_parts, load, load_parts

FURTHER = {
    "longer": "beside them a RegenerateImage that was trained longer",
    "iddpm": "beside them a model trained by IDDPM",
}  # checkpoints for the evidence
ON_SCENES = ("scenes", "quick", "baselines", "evidence", *FURTHER)
ON_PICTURES = ("samples", "seed", "baseline_image", "baseline_crop", "vae", "text_encoder", "inception", "clip")


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a model on held-out scenes, or on somebody's pictures")
    evaluate.add_argument("--output", type=Path, required=True, help="folder for numbers, a table and a picture")
    evaluate.add_argument(
        "--checkpoint", type=Path, help="the model that ships if not given; for comparisons, the laboratory's"
    )
    add_device(evaluate)
    add_dtype(evaluate)
    scenes = evaluate.add_argument_group("on the built-in scenes")
    scenes.add_argument(
        "--scenes", type=int, help="held-out scenes per question (500; baselines, evidence, large world: 200)"
    )
    scenes.add_argument("--quick", action="store_true", help="few scenes, to see that it runs")
    scenes.add_argument("--baselines", action="store_true", help="compare with the two that compute every token")
    scenes.add_argument("--evidence", action="store_true", help="the same, each at its best, with bounds; goes on")
    for name, what in FURTHER.items():
        scenes.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"evidence: {what}")
    pictures = evaluate.add_argument_group("on pictures")
    pictures.add_argument("--data", help="prepared shards held out of training, such as 'held-out/{00000..00003}.tar'")
    pictures.add_argument("--samples", type=int, help="the first so many pictures (all)")
    pictures.add_argument("--seed", type=int, help="chooses the hole of each picture, and the noise (1)")
    pictures.add_argument("--baseline-image", type=Path, help="checkpoint of RegenerateImage, to compare with")
    pictures.add_argument("--baseline-crop", type=Path, help="checkpoint of RegenerateCrop, to compare with")
    pictures.add_argument("--inception", type=Path, help="for FID: a TorchScript file such as inception-2015-12-05.pt")
    pictures.add_argument("--clip", type=Path, help="for CLIPScore: folder of a CLIP model of transformers")
    add_parts(pictures)
    evaluate.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> None:
    """Errors: ValueError for options of the other kind of evaluation."""
    useless = ON_SCENES if options.data is not None else ON_PICTURES
    if given := [name for name in useless if getattr(options, name) not in (None, False)]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{names}: {'not with' if options.data is not None else 'only with'} --data")
    if options.data is None:
        evaluate_on_scenes(options)
    else:
        evaluate_on_shards(options)


def evaluate_on_scenes(options: argparse.Namespace) -> None:
    from ..evaluation import evaluate, evaluate_baselines, evaluate_evidence, evaluate_world
    from ..evaluation.laboratory import SMALL, WEIGHTS
    from ..scenes import CANVAS
    from .files import writable_folder

    if options.scenes is not None and options.scenes < 1:
        raise ValueError(f"{options.scenes} scenes: choose at least 1")
    if options.baselines and options.evidence:
        raise ValueError("--baselines and --evidence are two comparisons: ask for one at a time")
    further = {name: path for name in FURTHER if (path := getattr(options, name)) is not None}
    if further and not options.evidence:
        raise ValueError(f"--{next(iter(further))}: only with --evidence")
    folder = writable_folder(options.output)
    comparing = options.baselines or options.evidence
    model = load(options.checkpoint or (SMALL if comparing else SHIPPED), options)
    report = folder / "evaluation.md"
    number = {} if options.scenes is None else {"scenes": options.scenes}
    if comparing:
        others = {kind: WEIGHTS / f"regenerate-{kind}.safetensors" for kind in ("image", "crop")}
        models = {"lazy": model, **{name: load(path, options) for name, path in (others | further).items()}}
        compare = evaluate_baselines if options.baselines else evaluate_evidence
        compare(models, folder, quick=options.quick, **number)
        report = folder / ("baselines.md" if options.baselines else "evidence.md")
    else:
        measure = evaluate if model.config.network.canvas == CANVAS else evaluate_world
        measure(model, folder, quick=options.quick, **number)
    print(report.read_text("utf-8"))


def evaluate_on_shards(options: argparse.Namespace) -> None:
    from ..data.shards import expand_shards
    from ..evaluation.on_pictures import PictureSettings, check_pictures, evaluate_pictures
    from ..evaluation.pictures_report import METHODS
    from ..model.checkpoint import read_settings
    from .files import writable_folder

    given = {name: value for name in ("samples", "seed") if (value := getattr(options, name)) is not None}
    settings = PictureSettings(inception=options.inception, clip=options.clip, **given)
    shards = expand_shards(options.data)
    check_pictures(shards, settings)  # before anything large is read
    folder = writable_folder(options.output)
    checkpoint = options.checkpoint or SHIPPED
    named = (checkpoint, options.baseline_image, options.baseline_crop)
    paths = {name: path for name, path in zip(METHODS, named, strict=True) if path is not None}
    needing = [path for path in paths.values() if not read_settings(path)[1]]
    parts = load_parts((needing or [checkpoint])[0], options)
    models = {name: load(path, options, parts, strict=True) for name, path in paths.items()}
    evaluate_pictures(models, shards, folder, settings)
    print((folder / "evaluation.md").read_text("utf-8"))
