"""What there is to prepare: cheap descriptions of pictures, which travel to worker processes and are read there."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from ..core.checks import Range, shortened
from ..core.picture_files import grey, in_srgb, open_picture, see_through
from ..scenes import CANVAS, random_sample
from ..world import on_plain_ground, random_world_sample
from .entities import MASK_SIZE, Entity, Refusal

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK = re.compile(r"(?P<picture>.+)\.mask(\.\d+)?\.png")
UNREADABLE = "not a picture that can be read"
TRANSPARENT = "transparent in places"
LEAST = 64  # px of a side, below which nothing can be told in the large world
WORLD = 2  # raised whenever a number becomes another picture
NOT_UTF8 = "a caption that is not UTF-8"


class Picture(NamedTuple):
    """A picture that was read.

    caption: of the whole; entities: things in it; holes: where they are given, no other are made
    """

    image: Image.Image
    caption: str | None
    entities: Sequence[Entity] = ()
    holes: Sequence[Entity] = ()


class SourceItem(Protocol):
    """A picture that can be read. key: its name in a shard, of letters, digits, - and _"""

    @property
    def key(self) -> str: ...

    def read(self) -> Picture:
        """Errors: `Refusal`, and no other, for whatever is wrong with its files."""
        ...


class Source(Protocol):
    """Pictures in an order that depends on nothing but themselves.

    identity: tells it from every other source; count: of its pictures, None if nobody knows
    """

    @property
    def identity(self) -> str: ...

    @property
    def count(self) -> int | None: ...

    def units(self, pictures: int) -> Sequence[Iterable[SourceItem]]:
        """What each output shard is made of: at most so many pictures, where it is the source's to choose."""
        ...


# Folders


@dataclass(frozen=True)
class PictureFile:
    """x.jpg with its caption x.txt, and masks x.mask.png or x.mask.0.png … (white = the entity) with captions
    x.mask.txt or x.mask.0.txt …; everything but the picture may be missing."""

    key: str
    path: Path
    masks: tuple[Path, ...]

    def read(self) -> Picture:
        image = open_opaque(self.path)
        return Picture(image, read_caption(self.path), [self.entity(path, image) for path in self.masks])

    def entity(self, path: Path, image: Image.Image) -> Entity:
        mask = grey(open_upright(path)) > 0.5
        if mask.shape != image.size[::-1]:
            detail = f"{path.name}: {mask.shape[1]}×{mask.shape[0]}, not {image.width}×{image.height}"
            raise Refusal(MASK_SIZE, detail)
        return Entity.of_mask(mask, read_caption(path))


class FolderSource:
    """All pictures of a folder and the folders in it, by name."""

    def __init__(self, folder: Path):
        """Errors: ValueError for a folder that is not there, or has no picture in it."""
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder")
        names = sorted(name for name in relative_names(folder) if Path(name).suffix.lower() in (*PICTURES, ".txt"))
        masks: dict[str, list[Path]] = {}
        for name in names:
            if found := MASK.fullmatch(name):
                masks.setdefault(found["picture"], []).append(folder / name)
        pictures = [name for name in names if not (name.lower().endswith(".txt") or MASK.fullmatch(name))]
        if not pictures:
            raise ValueError(f"{folder}: there is no picture in it ({', '.join(PICTURES)})")
        stems = [name.rpartition(".")[0] for name in pictures]
        times = Counter(stems)
        self.items = [
            PictureFile(key_of(stem if times[stem] == 1 else name), folder / name, tuple(masks.get(stem, ())))
            for name, stem in zip(pictures, stems, strict=True)
        ]
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\0{(folder / name).lstat().st_size}\0".encode(errors="surrogateescape"))
        self.identity = f"folder {digest.hexdigest()[:16]}"
        self.count = len(self.items)

    def units(self, pictures: int) -> Sequence[Iterable[SourceItem]]:
        return divided(mixed(self.items), pictures)


def relative_names(folder: Path) -> Iterator[str]:
    """All files of a folder and the folders in it, but hidden ones, with forward slashes."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name).relative_to(folder).as_posix() for name in names if not name.startswith("."))


# Pictures that are drawn


@dataclass(frozen=True)
class SceneNumber:
    """One of the built-in scenes, with the hole and the caption that come with it."""

    seed: int
    number: int

    @property
    def key(self) -> str:
        return f"{self.number:08d}"

    def read(self) -> Picture:
        sample = random_sample(np.random.default_rng([self.seed, self.number]))
        return Picture(Image.fromarray(sample.image), None, holes=[Entity.of_mask(sample.mask, sample.caption)])


class SceneSource:
    """The first `count` scenes of a seed."""

    def __init__(self, count: int, size: int, seed: int):
        """Errors: ValueError for a size that the scenes are not drawn in."""
        if size != CANVAS:
            raise ValueError(f"the built-in scenes are {CANVAS} px wide, not {size}: choose --size {CANVAS}")
        if count < 1:
            raise ValueError(f"{count} scenes: choose at least 1")
        self.count, self.seed = count, seed
        self.identity = f"{count} scenes"

    def units(self, pictures: int) -> Sequence[Iterable[SourceItem]]:
        return divided([SceneNumber(self.seed, number) for number in range(self.count)], pictures)


@dataclass(frozen=True)
class WorldNumber:
    """A picture of the large world, with the hole and the caption that come with it."""

    seed: int
    number: int
    size: int
    plain: float

    @property
    def key(self) -> str:
        return f"{self.number:08d}"

    def read(self) -> Picture:
        rng = np.random.default_rng([self.seed, self.number])
        sample = random_world_sample(rng, self.size)
        if rng.random() < self.plain:
            sample = on_plain_ground(rng, sample)
        return Picture(Image.fromarray(sample.image), None, holes=[Entity.of_mask(sample.mask, sample.caption)])


class WorldSource:
    """The first `count` pictures of the large world of a seed."""

    def __init__(self, count: int, size: int, seed: int, plain: float = 0.0):
        """plain: share of those with things in their task that show them on one colour

        Errors: ValueError for no pictures, a size in which nothing can be seen, or a share that is none.
        """
        if not Range(0, 1).has(plain):
            raise ValueError(f"a share of {shortened(plain)} plain scenes: choose 0 to 1")
        if count < 1:
            raise ValueError(f"{count} scenes: choose at least 1")
        if size < LEAST:
            raise ValueError(f"scenes of {size} px show nothing: choose {CANVAS} (the small world), or {LEAST} or more")
        self.count, self.size, self.seed, self.plain = count, size, seed, plain
        self.identity = f"{count} pictures of the world {WORLD}" + (f", plain {plain}" if plain else "")

    def units(self, pictures: int) -> Sequence[Iterable[SourceItem]]:
        numbers = [WorldNumber(self.seed, number, self.size, self.plain) for number in range(self.count)]
        return divided(numbers, pictures)


# What sources share


def mixed(items: Sequence[SourceItem]) -> list[SourceItem]:
    """Items in an order that has nothing to do with their names, which often go by subject: a training takes what is in
    one step from few shards."""
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))]


def divided(items: Sequence[SourceItem], pictures: int) -> list[Sequence[SourceItem]]:
    """Items in their order, so many to a shard."""
    return [items[start : start + pictures] for start in range(0, len(items), pictures)]


def key_of(name: str) -> str:
    """A name as a shard's key; one that cannot be gets other signs and a digest, so that none become the same."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[-60:]}-{digest}"


def open_upright(file: Path | io.BytesIO) -> Image.Image:
    """Errors: `Refusal` for what is no picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities in files that were not made here
            return open_picture(file, file.name if isinstance(file, Path) else "it", silent)
    except ValueError as error:
        raise Refusal(UNREADABLE, error) from error


def open_opaque(file: Path | io.BytesIO) -> Image.Image:
    """An upright picture in 8-bit sRGB. Errors: `Refusal` for what is no picture, or transparent somewhere."""
    picture = open_upright(file)
    try:
        if see_through(picture):
            raise Refusal(TRANSPARENT)
        return in_srgb(picture, "it", silent)
    except ValueError as error:
        raise Refusal(UNREADABLE, error) from error


def silent(note: str) -> None:
    """Nobody reads the notes on a million pictures."""


def read_caption(path: Path) -> str | None:
    """The text beside a picture, None where there is none. Errors: `Refusal` for one that is not UTF-8."""
    try:
        return as_caption(path.with_suffix(".txt").read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refusal(UNREADABLE, error) from error


def as_caption(content: bytes) -> str | None:
    """A text in one line, None for one without words. Errors: `Refusal` for one that is not UTF-8."""
    try:
        return in_one_line(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Refusal(NOT_UTF8, error) from error


def in_one_line(caption: str | None) -> str | None:
    """A caption without line breaks, None for one without words."""
    return " ".join((caption or "").split()) or None
