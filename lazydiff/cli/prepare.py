"""The command that makes shards for training out of pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .devices import add_device, add_dtype, add_parts, choose_device, choose_dtype

if TYPE_CHECKING:  # it needs packages that only training has
    from ..data.sources import Source

SCENE, PHOTOGRAPH = 96, 512  # px, the usual sizes


def add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("prepare", help="make shards for training out of pictures, or go on with it")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--webdataset", metavar="URLS", help="tars, local or not, as in 'tars/{000..099}.tar'")
    where.add_argument("--scenes", type=int, metavar="N", help="so many drawn scenes")
    where.add_argument("--images", type=Path, help="a folder; beside x.jpg its caption x.txt, and masks x.mask.0.png …")
    command.add_argument("--coco", type=Path, help="instances*.json, which tells what is in --images")
    command.add_argument("--captions", type=Path, help="captions*.json of the same pictures")
    command.add_argument("--output", type=Path, required=True, help="folder for the shards")
    command.add_argument(
        "--size", type=int, help=f"px per side ({PHOTOGRAPH}; scenes {SCENE}, any other size draws the large world)"
    )
    command.add_argument(
        "--plain", type=float, default=0.0, metavar="SHARE", help="of scenes with things: those on one colour (0)"
    )
    command.add_argument("--holes", type=int, default=3, help="most holes of one picture (%(default)s)")
    command.add_argument("--crop", action="store_true", help="squares around the holes, for RegenerateCrop")
    command.add_argument("--seed", type=int, default=0, help="of the holes (%(default)s)")
    command.add_argument("--smallest", type=int, help="px that a picture's shorter side must have (half of --size)")
    command.add_argument("--shard-size", type=int, default=1000, help="pictures to a shard (%(default)s)")
    add_parts(command)
    command.add_argument("--segmenter", type=Path, help="folder of a SAM, for pictures without masks")
    command.add_argument("--captioner", type=Path, help="folder of a BLIP, for captions that are missing")
    command.add_argument("--processes", type=int, help="one with any model, else as many as there are cores")
    add_device(command)
    add_dtype(command)
    command.set_defaults(run=run_prepare)


def run_prepare(options: argparse.Namespace) -> None:
    try:
        from ..data.prepare import prepare_shards
        from ..data.samples import ModelFolders, Preparation
    except ImportError as error:
        raise ImportError(f'preparing needs more packages ({error}): pip install "lazydiffusion[train]"') from error
    from .files import writable_folder

    if (options.vae is None) != (options.text_encoder is None):
        given, missing = ("--vae", "--text-encoder") if options.vae else ("--text-encoder", "--vae")
        raise ValueError(f"{given} without {missing}: a training needs the latents and the features, or neither")
    size = (PHOTOGRAPH if options.scenes is None else SCENE) if options.size is None else options.size
    smallest = options.smallest or max(size // 2, 1)
    settings = Preparation(size, options.holes, options.crop, options.seed, smallest, options.shard_size)
    settings.check()
    device = choose_device(options.device)
    folders = ModelFolders(
        options.vae, options.text_encoder, options.segmenter, options.captioner, device,
        choose_dtype(options.dtype, device),
    )  # fmt: skip
    source = chosen_source(options, size)
    report = prepare_shards(source, writable_folder(options.output), settings, folders, options.processes)
    print(report.table())
    if not report.samples:
        raise ValueError(
            f"no picture could be used: {options.output / 'refused.csv'} says why (masks that are missing are found by "
            "--segmenter, captions by --captioner)"
        )
    print(options.output)


def chosen_source(options: argparse.Namespace, size: int) -> Source:
    """Errors: ValueError for arguments that do not go together, and for what is not there."""
    from ..data.coco import CocoSource
    from ..data.sources import FolderSource, SceneSource, WorldSource
    from ..data.webdatasets import WebdatasetSource

    if options.plain and (options.scenes is None or size == SCENE):
        raise ValueError(f"--plain is for --scenes of another size than {SCENE}")
    if options.coco and not options.images:
        raise ValueError("--coco tells what is in pictures: give their folder to --images")
    if options.captions and not options.coco:
        raise ValueError("--captions goes with --coco; the captions of a folder stand beside its pictures")
    if options.coco:
        return CocoSource(options.coco, options.captions, options.images, names=options.captioner is None)
    if options.images:
        return FolderSource(options.images)
    if options.webdataset:
        return WebdatasetSource(options.webdataset)
    if size == SCENE:
        return SceneSource(options.scenes, size, options.seed)
    return WorldSource(options.scenes, size, options.seed, options.plain)
