"""Prepared shards: webdataset tars of pictures, with the holes, captions, latents and text features of each.

A shard's first member is its header; webdataset's own readers pass over it. Then, for each picture KEY: KEY.webp,
KEY.json (captions, and holes as COCO run lengths), KEY.latent.safetensors and KEY.text.safetensors, the last two only
where the shard was prepared with a VAE and with a text encoder.
"""

from __future__ import annotations

import glob
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image
from pycocotools import mask as run_lengths
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from webdataset import TarWriter
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from ..core.checks import shortened
from ..core.files import whole_file
from .entities import count_pixels

MARK, KIND, FORMAT = "__lazydiffusion__", "lazydiffusion shard", 1
HEADER = 2048  # bytes: of a fixed length, because the number of samples is filled in at the end
PICTURE, DESCRIPTION, LATENT, TEXT = "webp", "json", "latent.safetensors", "text.safetensors"


class ShardError(ValueError):
    """A shard that cannot be used; the message names it and the reason."""


@dataclass(frozen=True)
class LatentOrigin:
    """The VAE that a shard's latents are of, by `pretrained_fingerprint`; px per cell, and channels."""

    fingerprint: str
    cell: int
    channels: int


@dataclass(frozen=True)
class TextOrigin:
    """The text encoder that a shard's features are of; their width, and the most tokens of a caption."""

    fingerprint: str
    width: int
    length: int


@dataclass(frozen=True)
class ShardHeader:
    """What is the same for all samples of a shard.

    size: px per side of its pictures; crop: each shows the square around its hole alone
    """

    size: int
    samples: int = 0
    crop: bool = False
    vae: LatentOrigin | None = None
    text: TextOrigin | None = None

    def to_bytes(self) -> bytes:
        return json.dumps({"kind": KIND, "format": FORMAT, **asdict(self)}).encode().ljust(HEADER)

    @classmethod
    def of_bytes(cls, url: str, content: bytes) -> ShardHeader:
        """Errors: `ShardError` for what is no header, or one of another version."""
        try:
            values = json.loads(content)
            if values.pop("kind") != KIND or (version := values.pop("format")) != FORMAT:
                raise ShardError(f"{url}: shard format {shortened(version)} is unknown here: prepare it again")
            vae, text = values.pop("vae"), values.pop("text")
            header = cls(vae=vae and LatentOrigin(**vae), text=text and TextOrigin(**text), **values)
        except ShardError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, UnboundLocalError) as error:
            raise ShardError(f"{url}: its header is damaged: prepare it again") from error
        if not all(type(n) is int and n >= 0 for n in (header.size, header.samples)):
            raise ShardError(f"{url}: its header is damaged: prepare it again")
        return header


@dataclass(frozen=True, eq=False)
class ShardSample:
    """One picture of a shard, of which each part is read when it is asked for.

    caption: of the whole picture; captions: of each hole
    Errors: every part raises `ShardError` for members that are damaged, missing or of other sizes than the header says.
    """

    where: str
    header: ShardHeader
    members: Mapping[str, bytes]
    caption: str
    captions: tuple[str, ...]
    holes: tuple[dict[str, Any], ...]

    @classmethod
    def of_members(cls, url: str, header: ShardHeader, key: str, members: Mapping[str, bytes]) -> ShardSample:
        where = f"{url}, sample {key}"
        try:
            about = json.loads(members[DESCRIPTION].decode())
            caption, holes = about["caption"], about["holes"]
            captions, masks = zip(*((hole["caption"], hole["mask"]) for hole in holes), strict=True)
            if not all(isinstance(text, str) for text in (caption, *captions)):
                raise ShardError(f"{where}: a caption is no text")
            sizes = [list(mask["size"]) for mask in masks]
        except ShardError:
            raise
        except UnicodeDecodeError as error:
            raise ShardError(f"{where}: its captions are not UTF-8") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ShardError(f"{where}: its description ({DESCRIPTION}) is damaged or missing") from error
        if wrong := [size for size in sizes if size != [header.size] * 2]:
            raise ShardError(f"{where}: a mask is of {wrong[0]}, and the shard's pictures are {header.size} px wide")
        return cls(where, header, members, caption, captions, masks)

    def picture(self) -> np.ndarray:
        """uint8 [H, W, 3]"""
        try:
            with Image.open(io.BytesIO(self.members[PICTURE])) as picture:
                pixels = np.array(picture.convert("RGB"))
        except Exception as error:  # the decoders of damaged files raise whatever they come upon
            raise ShardError(f"{self.where}: its picture cannot be read") from error
        if pixels.shape[:2] != (self.header.size,) * 2:
            size = f"{pixels.shape[1]}×{pixels.shape[0]}"
            raise ShardError(f"{self.where}: its picture is {size}, and the shard's are {self.header.size} px wide")
        return pixels

    def mask(self, hole: int) -> np.ndarray:
        """bool [H, W], True = hole"""
        try:
            mask = decode_mask(self.holes[hole]["counts"], self.header.size, self.header.size)
        except (ValueError, KeyError) as error:
            raise ShardError(f"{self.where}: the run lengths of mask {hole} are damaged or of another size") from error
        if not mask.any():
            raise ShardError(f"{self.where}: mask {hole} has no hole")
        return mask

    def latents(self, hole: int) -> np.ndarray:
        """float16 [3, C, h, w], in the scale in which the model sees latents: the posterior's mean and deviation of the
        picture, and the mean of the picture with mid grey in its hole (equation 1). The header names a VAE."""
        origin = self.header.vae
        assert origin is not None
        tensors, cells = self.tensors(LATENT), self.header.size // origin.cell
        try:
            parts = tensors["mean"], tensors["deviation"], tensors["visible.mean"][hole]
        except (KeyError, IndexError) as error:
            raise ShardError(f"{self.where}: a part of its latents is missing") from error
        if any(part.shape != (origin.channels, cells, cells) for part in parts):
            raise ShardError(f"{self.where}: its latents are of another size than the header says")
        return self.numbers(np.stack(parts), "latents")

    def features(self, name: int | str) -> np.ndarray:
        """float16 [L, width], those of a hole's caption or, as “empty”, of no text. The header names a text encoder."""
        origin = self.header.text
        assert origin is not None
        features = self.tensors(TEXT).get(str(name))
        if features is None or features.ndim != 2 or features.shape[1] != origin.width or not len(features):
            raise ShardError(f"{self.where}: the text features {name} are missing or of another width")
        return self.numbers(features, "text features")

    def tensors(self, member: str) -> dict[str, np.ndarray]:
        try:
            return safetensors.numpy.load(self.members[member])
        except (KeyError, SafetensorError, ValueError) as error:
            raise ShardError(f"{self.where}: its {member} is damaged or missing") from error

    def numbers(self, values: np.ndarray, name: str) -> np.ndarray:
        if not np.isfinite(values).all():
            raise ShardError(f"{self.where}: its {name} have values that are not numbers (NaN or infinite)")
        return values


def describe_sample(caption: str, holes: list[tuple[str, np.ndarray]]) -> bytes:
    """The member that tells a picture's captions and holes (a caption and a mask bool [H, W] of each)."""
    encoded = [
        {"caption": text, "mask": {"size": list(mask.shape), "counts": encode_mask(mask)}} for text, mask in holes
    ]
    return json.dumps({"caption": caption, "holes": encoded}).encode()


def encode_mask(mask: np.ndarray) -> str:
    """Mask bool [H, W] -> COCO's compressed run lengths."""
    counts: bytes = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode()


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """COCO's compressed run lengths -> mask bool [H, W]. Errors: ValueError for those of no mask of that size."""
    try:
        if count_pixels(counts.encode()) != height * width:
            raise ValueError("too few or too many pixels")
        mask: np.ndarray = run_lengths.decode({"size": [height, width], "counts": counts.encode()})
    except Exception as error:  # the library raises what it comes upon
        raise ValueError(f"the run lengths are of no mask of {width}×{height}") from error
    return mask.astype(bool)


def picture_bytes(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> WebP, without loss."""
    content = io.BytesIO()
    # Here quality is effort: more of it takes twenty times as long and saves nothing.
    Image.fromarray(pixels).save(content, "webp", lossless=True, method=0, quality=0)
    return content.getvalue()


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors in half precision."""
    content: bytes = save({name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()})
    return content


@contextmanager
def write_shard(path: Path, header: ShardHeader) -> Iterator[ShardWriter]:
    """A shard to write samples to, which takes its name when it is finished; the same samples make the same bytes."""
    with whole_file(path) as unfinished:
        with unfinished.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            about = tarfile.TarInfo(MARK)
            about.size = HEADER
            tar.tarstream.addfile(about, io.BytesIO(header.to_bytes()))
            writer = ShardWriter(tar)
            yield writer
        with unfinished.open("r+b") as finished:
            finished.seek(tarfile.BLOCKSIZE)
            finished.write(replace(header, samples=writer.samples).to_bytes())


class ShardWriter:
    """Takes the samples of one shard in turn."""

    def __init__(self, tar: TarWriter):
        self.tar, self.samples = tar, 0

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        self.tar.write({"__key__": key, **members})
        self.samples += 1


def expand_shards(pattern: str) -> list[str]:
    """The shards that a pattern names, in order: braces as in “{00000..00999}.tar”, several patterns joined by “::”,
    and wildcards of local files. Errors: ValueError for wildcards that match nothing, or for one shard named twice."""
    urls: list[str] = []
    for url in expand_urls(pattern):
        found = sorted(glob.glob(url)) if glob.has_magic(url) and ":" not in url.split("/")[0] else [url]
        if not found:
            raise ValueError(f"there is no shard “{url}”")
        urls += found
    if len(set(urls)) < len(urls):
        raise ValueError(f"“{shortened(pattern)}” names the same shard twice")
    return urls


@contextmanager
def reading(url: str) -> Iterator[Any]:
    """A stream of a shard's bytes. Errors: `ShardError` for what cannot be opened, or is no whole tar."""
    try:
        with gopen(url, "rb") as stream:
            yield stream
    except FileNotFoundError:
        raise ShardError(f"{url}: there is no such shard") from None
    except (tarfile.ReadError, EOFError) as error:  # the second of a compressed one
        raise ShardError(f"{url}: it is no tar, or not a whole one: prepare it again") from error
    except IsADirectoryError:
        raise ShardError(f"{url}: it is a folder: name the shards in it, '{url}/*.tar'") from None
    except OSError as error:
        reason = error.strerror or shortened(" ".join(map(str, error.args)), 200)
        raise ShardError(f"{url}: it cannot be read ({reason})") from error


def read_header(url: str) -> ShardHeader:
    """Errors: `ShardError` for what cannot be read, or is no prepared shard."""
    try:
        with reading(url) as stream:
            tar = tarfile.open(fileobj=stream, mode="r|*")
            first = tar.next()
            content = tar.extractfile(first) if first is not None and first.name == MARK else None
            if content is None:
                raise ShardError(f"{url}: it is not prepared for training: use `python -m lazydiff prepare` on it")
            return ShardHeader.of_bytes(url, content.read())
    except BrokenPipeError:
        raise ShardError(f"{url}: it cannot be read") from None


def read_samples(url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys and members of any webdataset's samples, in their order. Errors: `ShardError` as `reading`."""
    with reading(url) as stream:
        for sample in group_by_keys(tar_file_expander([{"url": url, "stream": stream}])):
            key = sample["__key__"]
            yield key, {name: value for name, value in sample.items() if not name.startswith("__")}


def read_shard(url: str) -> Iterator[ShardSample]:
    """The samples of a prepared shard. Errors: `ShardError`, also at its end if it is not whole."""
    header, found = read_header(url), 0
    for key, members in read_samples(url):
        yield ShardSample.of_members(url, header, key, members)
        found += 1
    if found != header.samples:
        raise ShardError(f"{url}: {found} of its {header.samples} samples are there: prepare it again")
