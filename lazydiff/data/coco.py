"""COCO's instances and captions, as the files of its releases hold them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.checks import shortened
from ..core.files import check_file
from .entities import Entity, Refusal
from .sources import Picture, SourceItem, divided, in_one_line, key_of, mixed, open_opaque

OTHER_SIZE = "another size than its annotations say"


@dataclass(frozen=True)
class CocoImage:
    """A picture with its segmentations, of which each has a caption or waits for one."""

    key: str
    path: Path
    size: tuple[int, int]  # height and width, as the annotations say
    segmentations: tuple[tuple[Any, str | None], ...]
    caption: str | None

    def read(self) -> Picture:
        image = open_opaque(self.path)
        check_size(image.size[::-1], self.size)
        entities = [Entity.of_segmentation(outline, self.size, caption) for outline, caption in self.segmentations]
        return Picture(image, self.caption, entities)


def check_size(size: tuple[int, int], said: tuple[int, int]) -> None:
    """Height and width of a picture. Errors: `Refusal` when its annotations say others."""
    if size != said:
        raise Refusal(OTHER_SIZE, f"{size[1]}×{size[0]}, not {said[1]}×{said[0]}")


class CocoSource:
    """The pictures of an instances file, by their file names; crowds are left out.

    names: whether an entity's caption is its category's name; without, it is left to a captioner
    """

    def __init__(self, instances: Path, captions: Path | None, images: Path, names: bool = True):
        """Errors: ValueError for files that are not COCO's, or a folder that is not there."""
        if not images.is_dir():
            raise ValueError(f"{images}: there is no such folder")
        digest = hashlib.sha256()
        found = read_annotations(instances, digest)
        texts = read_annotations(captions, digest) if captions else {"annotations": []}
        try:
            self.items = list(coco_images(found, first_captions(texts), images, names))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{instances}: it is not a file of COCO instances ({shortened(repr(error))})") from error
        if not self.items:
            raise ValueError(f"{instances}: it has no pictures")
        self.identity = f"COCO {digest.hexdigest()[:16]}"
        self.count = len(self.items)

    def units(self, pictures: int) -> Sequence[Iterable[SourceItem]]:
        return divided(mixed(self.items), pictures)


def read_annotations(path: Path, digest: Any) -> dict[str, Any]:
    """One of COCO's files. digest: gets to know its bytes"""
    check_file(path)
    content = path.read_bytes()
    digest.update(content)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: it is not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("annotations"), list):
        raise ValueError(f"{path}: it has no annotations: give a file like COCO's instances_train2017.json")
    return found


def first_captions(texts: dict[str, Any]) -> dict[Any, str | None]:
    """The first of the five that COCO has for each picture."""
    captions: dict[Any, str | None] = {}
    for text in texts["annotations"]:
        captions.setdefault(text["image_id"], in_one_line(text["caption"]))
    return captions


def coco_images(
    found: dict[str, Any], captions: dict[Any, str | None], images: Path, names: bool
) -> Iterable[CocoImage]:
    categories = {category["id"]: category["name"] for category in found["categories"]}
    segmentations = defaultdict(list)
    for annotation in found["annotations"]:
        if not annotation.get("iscrowd"):
            name = categories[annotation["category_id"]] if names else None
            segmentations[annotation["image_id"]].append((annotation["segmentation"], name))
    for image in sorted(found["images"], key=lambda image: image["file_name"]):
        number, size = image["id"], (int(image["height"]), int(image["width"]))
        key = key_of(str(PurePosixPath(image["file_name"]).with_suffix("")))
        path = images / image["file_name"]
        yield CocoImage(key, path, size, tuple(segmentations[number]), captions.get(number))
