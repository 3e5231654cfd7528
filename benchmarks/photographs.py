"""The road from pictures to a model, on photographs: a small model learns a dozen of them by heart.

    python -m benchmarks.photographs --output DIR [--quick]

The pictures are those that scikit-image's wheel brings, with boxes drawn by hand; they become a COCO data set, and go
through `prepare`, `train` and `edit` as they are typed. Writes `photographs.png`, for every second box the canvas with
its hole, what the model fills in, and the truth, and `photographs.json` with the PSNR in the holes. It takes a quarter
of an hour of one core. That it knows them says nothing of pictures that it has not seen: it shows that nothing on the
road is made for scenes alone.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lazydiff.cli import main as lazydiff
from lazydiff.core.pictures import from_array, grid
from lazydiff.data.shards import ShardSample, expand_shards, read_shard

from .harness import Harness, arguments

CONFIG = Path(__file__).with_suffix(".toml")
SIZE = 96  # px, of the small model's canvas
QUICK_STEPS = 2
SHOWN, COLUMNS = 2, 6  # every second box; two triples to a row
HATCHED = np.array((255, 0, 255), np.uint8)


class Box(NamedTuple):
    """What is where in a picture: left, top, width and height in px."""

    caption: str
    area: tuple[int, int, int, int]


BOXES = {
    "astronaut.png": (
        Box("the face of a smiling woman", (165, 10, 145, 175)), Box("a space helmet", (280, 340, 230, 172)),
        Box("a mission patch", (130, 345, 85, 80)), Box("a model of a space shuttle", (345, 10, 85, 240)),
    ),
    "camera.png": (Box("a man's head", (165, 65, 80, 90)), Box("a camera on a tripod", (255, 130, 80, 80))),
    "chelsea.png": (
        Box("the left eye of a cat", (130, 80, 80, 70)), Box("the right eye of a cat", (300, 105, 60, 65)),
        Box("the nose of a cat", (220, 215, 70, 60)),
    ),
    "coffee.png": (Box("a cup of coffee", (170, 15, 240, 240)), Box("a spoon", (310, 225, 100, 110))),
    "coins.png": (Box("a coin", (82, 32, 45, 45)), Box("a large coin", (290, 150, 65, 65))),
    "hubble_deep_field.jpg": (Box("a pale galaxy", (90, 340, 110, 110)), Box("a bright galaxy", (690, 430, 80, 80))),
    "ihc.png": (Box("a gland", (250, 310, 140, 190)),),
    "moon.png": (Box("a bright crater", (90, 55, 60, 60)), Box("a dark crater", (335, 95, 45, 45))),
    "motorcycle_left.png": (
        Box("the rear wheel of a motorcycle", (130, 260, 130, 140)), Box("an engine", (290, 270, 170, 130)),
        Box("the front wheel of a motorcycle", (500, 280, 120, 170)),
    ),
    "retina.jpg": (Box("the optic disc", (130, 540, 220, 260)), Box("a dark spot", (600, 640, 200, 200))),
    "rocket.jpg": (Box("a rocket", (305, 130, 40, 280)),),
    "brick.png": (Box("bricks", (200, 200, 120, 100)),),
    "grass.png": (Box("grass", (150, 150, 150, 120)),),
    "gravel.png": (Box("gravel", (300, 250, 130, 130)),),
}  # fmt: skip


def write_coco(folder: Path) -> None:
    """The photographs in images/, and instances.json and captions.json about them."""
    import skimage

    wheel = Path(skimage.__file__).parent / "data"
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = sorted({box.caption for box in chain.from_iterable(BOXES.values())})
    for name, boxes in BOXES.items():
        with Image.open(wheel / name) as picture:
            images.append({"id": len(images), "file_name": name, "width": picture.width, "height": picture.height})
            picture.convert("RGB").save(folder / "images" / name)
        for caption, (x, y, width, height) in boxes:
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append({
                "id": len(annotations), "image_id": images[-1]["id"], "category_id": names.index(caption),
                "segmentation": [corners], "area": width * height, "bbox": [x, y, width, height], "iscrowd": 0,
            })  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances))


def run(*arguments: object) -> None:
    """A command of the library. Errors: SystemExit where it fails."""
    if status := lazydiff([str(each) for each in arguments]):
        raise SystemExit(status)


def fill(folder: Path, sample: ShardSample, hole: int) -> Tensor:
    """What the trained model puts into a hole, [1, 3, H, W] in 0…1."""
    Image.fromarray(sample.picture()).save(folder / "canvas.png")
    Image.fromarray(sample.mask(hole)).save(folder / "mask.png")
    run(
        "edit", "--checkpoint", folder / "run" / "model.safetensors", "--image", folder / "canvas.png",
        "--mask", folder / "mask.png", "--prompt", sample.captions[hole], "--blend", "paste", "--output", folder,
    )  # fmt: skip
    with Image.open(folder / "edit-0.png") as picture:
        return from_array(np.asarray(picture))


def main(argv: Sequence[str] | None = None) -> None:
    harness = Harness.of(arguments(__doc__, f"{QUICK_STEPS} steps of training").parse_args(argv))
    cells: list[tuple[Tensor, str]] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_coco(folder)
        run(
            "prepare", "--images", folder / "images", "--coco", folder / "instances.json", "--size", SIZE,
            "--output", folder / "shards", "--holes", 4, "--processes", 1,
        )  # fmt: skip
        steps = ("--steps", QUICK_STEPS) if harness.quick else ()
        run("train", "--config", CONFIG, "--data", folder / "shards" / "*.tar", "--output", folder / "run", *steps)
        samples = [s for url in expand_shards(f"{folder}/shards/*.tar") for s in read_shard(url)]
        holes = [(sample, hole) for sample in samples for hole in range(len(sample.captions))]
        for number, (sample, hole) in enumerate(holes):
            truth, mask = from_array(sample.picture()), torch.from_numpy(sample.mask(hole))
            made = fill(folder, sample, hole)
            error = float((made - truth)[..., mask].square().mean())
            rows.append({"caption": sample.captions[hole], "psnr": round(-10 * math.log10(error), 2)})
            if number % SHOWN == 0:
                canvas = from_array(np.where(sample.mask(hole)[..., None], HATCHED, sample.picture()))
                cells += [(canvas[0], sample.captions[hole]), (made[0], "filled in"), (truth[0], "the photograph")]
        harness.output.mkdir(parents=True, exist_ok=True)
        grid(cells, COLUMNS).save(harness.output / "photographs.png")
    psnr = statistics.mean(row["psnr"] for row in rows)
    harness.write("photographs", {"psnr": round(psnr, 2)}, pictures=len(samples), table=rows)


if __name__ == "__main__":
    main()
