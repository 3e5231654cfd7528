"""From a picture to what a shard keeps of it: squares of one size, with holes, captions, latents and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..core.checks import Range, check_flags, check_ranges
from ..core.pictures import from_array, to_pil
from ..model.pretrained import load_text_encoder, load_vae, pretrained_fingerprint
from ..pipeline.fit import Crop
from .annotate import Captioner, Segmenter
from .encode import Encoder
from .entities import Entity, Refusal
from .holes import FULL, Hole, generator_of, has_right_size, random_hole
from .shards import DESCRIPTION, PICTURE, ShardHeader, describe_sample, picture_bytes
from .sources import Picture, SourceItem

NO_ENTITY = "no entity of 0.2 % to 70 % of the picture"
NO_CAPTION = "no entity with a caption"
SMALL = "too small"
SURROUNDINGS = 2  # sides of a crop that its canvas measures at most, as the paper's crops of 512 px in 1024 px
LIMITS = {
    "size": Range(16, 16383, whole=True), "holes": Range(1, 100, whole=True), "seed": Range(0, 2**64 - 1, whole=True),
    "smallest": Range(1, 1e9, whole=True), "shard_size": Range(1, 1e9, whole=True),
}  # fmt: skip


@dataclass(frozen=True)
class Preparation:
    """What decides how pictures are prepared.

    size: px per side; holes: of one picture at most; crop: a sample is the square around one hole (for RegenerateCrop);
    smallest: px of the shorter side, below which a picture is refused; shard_size: pictures that a shard is made of
    """

    size: int = 512
    holes: int = 3
    crop: bool = False
    seed: int = 0
    smallest: int = 256
    shard_size: int = 1000

    def check(self) -> None:
        """Errors: ValueError for settings out of their ranges."""
        check_ranges(self, LIMITS)
        check_flags(self, "crop")


@dataclass(frozen=True)
class ModelFolders:
    """The models that prepare, each from a folder of the user's or left out, and where they are computed.

    dtype: of the text encoder and the captioner
    """

    vae: Path | None = None
    text_encoder: Path | None = None
    segmenter: Path | None = None
    captioner: Path | None = None
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @property
    def any(self) -> bool:
        return any((self.vae, self.text_encoder, self.segmenter, self.captioner))


class Prepared(NamedTuple):
    """A sample as a shard takes it. cut: captions that were too long for the text encoder"""

    key: str
    members: dict[str, bytes]
    holes: int
    cut: int


class Preparer:
    """Makes the samples of pictures, with all models in memory."""

    def __init__(self, settings: Preparation, folders: ModelFolders):
        """Errors: ValueError for folders without the right models, or a size that the VAE has no cells for."""
        self.settings, self.folders = settings, folders
        device, dtype = folders.device, folders.dtype
        # Every pixel goes through the VAE, which stays in float32; T5's values leave float16.
        vae = folders.vae and load_vae(folders.vae).to(device)
        text_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
        text = folders.text_encoder and load_text_encoder(folders.text_encoder, dtype=text_dtype).to(device)
        if vae and settings.size % vae.cell:
            raise ValueError(f"size is {settings.size}: choose a multiple of the VAE's cell, {vae.cell} px")
        self.encoder = Encoder(vae or None, text or None)
        self.segmenter = folders.segmenter and Segmenter(folders.segmenter, device)
        self.captioner = folders.captioner and Captioner(folders.captioner, device, dtype)

    @property
    def header(self) -> ShardHeader:
        encoder, settings = self.encoder, self.settings
        return ShardHeader(settings.size, 0, settings.crop, encoder.latent_origin, encoder.text_origin)

    @property
    def origins(self) -> dict[str, Any]:
        """The models, by which a folder of shards knows them again."""
        names = ("segmenter", "captioner")
        found = {name: part and pretrained_fingerprint(part.model) for name in names if (part := getattr(self, name))}
        latent, text = self.encoder.latent_origin, self.encoder.text_origin
        origins = {"VAE": latent and latent.fingerprint, "text encoder": text and text.fingerprint}
        dtype = str(self.folders.dtype).removeprefix("torch.") if self.folders.any else None
        return {**origins, **{name: found.get(name) for name in names}, "dtype": dtype}

    def samples(self, item: SourceItem) -> list[Prepared]:
        """One sample of a picture, or with crops one of each hole. Errors: `Refusal`."""
        picture = item.read()
        shorter = min(picture.image.size)
        if shorter < self.settings.smallest:
            raise Refusal(SMALL, f"{picture.image.width}×{picture.image.height}")
        size = self.settings.size
        canvas = min(shorter, SURROUNDINGS * size) if self.settings.crop else size
        image = central_square(picture.image, canvas)
        caption = picture.caption or (self.captioner and self.captioner(image)) or ""
        holes = given_holes(picture, canvas) or self.draw(item.key, picture, image, caption)
        if not self.settings.crop:
            return [self.sample(item.key, image, caption, holes)]
        cropped = (crop_to_hole(image, hole, size) for hole in holes)
        return [self.sample(f"{item.key}-{i}", *crop) for i, crop in enumerate(cropped)]

    def draw(self, key: str, picture: Picture, image: Image.Image, caption: str) -> list[Hole]:
        """Holes around entities drawn from all that fit; in a few of their places, all of the canvas."""
        rng = generator_of(self.settings.seed, key)
        found = picture.entities or (self.segmenter and self.segmenter(image)) or ()
        fitting = 0
        holes: list[Hole] = []
        for place in rng.permutation(len(found)):
            mask = fitted_mask(found[place], image.width)
            if not has_right_size(mask):
                continue
            fitting += 1
            text = found[place].caption or (self.captioner and self.captioner.entity(image, mask))
            if text:
                whole = bool(caption) and rng.random() < FULL
                holes.append(Hole(np.ones_like(mask), caption) if whole else Hole(random_hole(mask, rng), text))
            if len(holes) == self.settings.holes:
                break
        if not holes:
            raise Refusal(NO_CAPTION if fitting else NO_ENTITY, f"{len(found)} entities")
        return holes

    def sample(self, key: str, image: Image.Image, caption: str, holes: Sequence[Hole]) -> Prepared:
        pixels = np.asarray(image)
        captions = [self.encoder.cut(hole.caption) for hole in holes]
        masks = [hole.mask for hole in holes]
        members = {
            PICTURE: picture_bytes(pixels),
            DESCRIPTION: describe_sample(caption, list(zip(captions, masks, strict=True))),
            **self.encoder.members(pixels, masks, captions),
        }
        cut = sum(short != hole.caption for short, hole in zip(captions, holes, strict=True))
        return Prepared(key, members, len(holes), cut)


def central_square(image: Image.Image, side: int) -> Image.Image:
    """The middle of a picture, as wide as its shorter side, scaled to `side` px."""
    width, height = image.size
    shorter = min(width, height)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    square = image.crop((left, top, left + shorter, top + shorter))
    return square if side == shorter else square.resize((side, side), Image.Resampling.LANCZOS)


def fitted_mask(entity: Entity, side: int) -> np.ndarray:
    """An entity in the middle of its picture, as a mask bool [side, side]."""
    mask = Image.fromarray(entity.pixels().astype(np.uint8) * 255)
    return np.asarray(central_square(mask, side)) > 127


def given_holes(picture: Picture, side: int) -> list[Hole]:
    """Holes that came with a picture, as far as they lie in its middle."""
    holes = [Hole(fitted_mask(hole, side), hole.caption or "") for hole in picture.holes]
    return [hole for hole in holes if hole.mask.any()]


def crop_to_hole(image: Image.Image, hole: Hole, size: int) -> tuple[Image.Image, str, list[Hole]]:
    """The square around a hole as a picture of its own, `size` px wide, and its caption, and the hole in it."""
    mask = torch.from_numpy(hole.mask)[None, None].float()
    square, mask = Crop.around(mask).view(from_array(np.asarray(image)), mask, size)
    return to_pil(square[0]), hole.caption, [Hole(mask[0, 0].numpy() > 0, hole.caption)]
