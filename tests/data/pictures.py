"""Small pictures with things in them, as people keep them: in folders, in COCO's files, in tars."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

SHAPE = (40, 56)  # height and width


def pixels(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def box(y: int = 10, x: int = 18, side: int = 16, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def save_mask(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def save_picture(folder: Path, name: str, seed: int, masks: int = 1) -> None:
    """NAME.png with a caption, and masks with captions."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path.with_name(f"{path.name}.png"))
    path.with_name(f"{path.name}.txt").write_text(f"picture {name}")
    for i in range(masks):
        save_mask(box(4 + 4 * i, 12 + 5 * i), path.with_name(f"{path.name}.mask.{i}.png"))
        path.with_name(f"{path.name}.mask.{i}.txt").write_text(f"thing {i} of {name}")


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths, as JSON has them."""
    runs = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths, by counting."""
    flat = mask.ravel(order="F")
    counts, value = [0], False
    for pixel in flat.tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def save_coco(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Instances and captions of a.png and b.png in the folder; changes: of the first annotation"""
    for seed, name in enumerate(("b", "a")):
        Image.fromarray(pixels(seed)).save(folder / f"{name}.png")
    outline = [[18, 10, 34, 10, 34, 26, 18, 26]]
    annotations = [
        {"image_id": 7, "category_id": 3, "segmentation": outline, "iscrowd": 0, **changes},
        {"image_id": 7, "category_id": 4, "segmentation": encoded(box(2, 12, 10)), "iscrowd": 0},
        {"image_id": 7, "category_id": 4, "segmentation": encoded(box(30, 30, 10)), "iscrowd": 1},
        {"image_id": 9, "category_id": 4, "segmentation": runs_of(box()), "iscrowd": 0},
    ]
    images = [
        {"id": number, "file_name": f"{name}.png", "height": SHAPE[0], "width": SHAPE[1]}
        for number, name in ((9, "b"), (7, "a"))
    ]
    categories = [{"id": 3, "name": "traffic light"}, {"id": 4, "name": "dog"}]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    texts = [{"image_id": 7, "caption": "A  street\n"}, {"image_id": 7, "caption": "Another"}]
    paths = folder / "instances.json", folder / "captions.json"
    paths[0].write_text(json.dumps(instances))
    paths[1].write_text(json.dumps({"annotations": texts}))
    return paths


def picture_file(image: np.ndarray, kind: str = "png") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    return content.getvalue()


def save_tar(path: Path, samples: Mapping[str, Mapping[str, Any]]) -> Path:
    """A webdataset; members that are not bytes are written as JSON."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, value in members.items():
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                about = tarfile.TarInfo(f"{key}.{suffix}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return path
