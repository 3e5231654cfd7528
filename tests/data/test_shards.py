"""Shards: what is written is read, part by part, and what is damaged is told in one line."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from lazydiff.data.shards import (
    DESCRIPTION,
    LATENT,
    PICTURE,
    TEXT,
    LatentOrigin,
    ShardError,
    ShardHeader,
    ShardSample,
    TextOrigin,
    describe_sample,
    encode_mask,
    expand_shards,
    picture_bytes,
    read_header,
    read_shard,
    tensor_bytes,
    write_shard,
)

SIZE = 16
HEADER = ShardHeader(SIZE, vae=LatentOrigin("of a VAE", 8, 4), text=TextOrigin("of T5", 6, 12))


def members(number: int) -> dict[str, bytes]:
    """A sample that is drawn from its number."""
    rng, generator = np.random.default_rng(number), torch.Generator().manual_seed(number)
    masks = rng.random((2, SIZE, SIZE)) < 0.3
    return {
        PICTURE: picture_bytes(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)),
        DESCRIPTION: describe_sample(f"whole {number}", [(f"a thing — {i}", mask) for i, mask in enumerate(masks)]),
        LATENT: tensor_bytes({
            "mean": torch.randn(4, 2, 2, generator=generator), "deviation": torch.rand(4, 2, 2, generator=generator),
            "visible.mean": torch.randn(2, 4, 2, 2, generator=generator),
        }),
        TEXT: tensor_bytes({name: torch.randn(3, 6, generator=generator) for name in ("0", "1", "empty")}),
    }  # fmt: skip


def write(path: Path, samples: int = 3, header: ShardHeader = HEADER, first: int = 0) -> str:
    with write_shard(path, header) as shard:
        for number in range(first, first + samples):
            shard.add(f"picture-{number}", members(number))
    return str(path)


def sample_of(**changes: bytes | None) -> ShardSample:
    """A sample some of whose members are others; None: missing."""
    found = {name: content for name, content in {**members(0), **changes}.items() if content is not None}
    return ShardSample.of_members("x.tar", HEADER, "a", found)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    url = write(tmp_path / "a.tar")
    assert read_header(url) == replace(HEADER, samples=3)
    for number, sample in enumerate(read_shard(url)):
        rng, generator = np.random.default_rng(number), torch.Generator().manual_seed(number)
        masks = rng.random((2, SIZE, SIZE)) < 0.3
        assert (sample.picture() == rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).all()
        assert sample.caption == f"whole {number}" and sample.captions == ("a thing — 0", "a thing — 1")
        assert all((sample.mask(i) == mask).all() for i, mask in enumerate(masks))
        mean, deviation = torch.randn(4, 2, 2, generator=generator), torch.rand(4, 2, 2, generator=generator)
        visible = torch.randn(2, 4, 2, 2, generator=generator)
        for i in range(2):
            assert (sample.latents(i) == torch.stack((mean, deviation, visible[i])).half().numpy()).all()
        features = {name: torch.randn(3, 6, generator=generator).half().numpy() for name in (0, 1, "empty")}
        assert all((sample.features(name) == values).all() for name, values in features.items())
    assert number == 2


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    first, second = (Path(write(tmp_path / name)).read_bytes() for name in ("a.tar", "b.tar"))
    assert first == second


def test_other_readers_of_webdatasets_read_it(tmp_path: Path) -> None:
    dataset = webdataset.WebDataset(write(tmp_path / "a.tar"), shardshuffle=False)
    assert [sample["__key__"] for sample in dataset] == [f"picture-{i}" for i in range(3)]


def test_an_interrupted_shard_is_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), write_shard(tmp_path / "a.tar", HEADER) as shard:
        shard.add("a", members(0))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_shards_come_through_pipes(tmp_path: Path) -> None:
    """One of webdataset's own schemes."""
    url = "pipe:cat " + write(tmp_path / "a.tar")
    assert read_header(url).samples == 3 and len(list(read_shard(url))) == 3


@pytest.mark.parametrize("cut", [0, 100, 700, 2000, 4000, 9000])
def test_a_truncated_tar_is_told(cut: int, tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "a.tar")).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:cut])
    with pytest.raises(ShardError, match=r"b\.tar.*(prepare|damaged or missing|cannot be read)"):
        for sample in read_shard(str(tmp_path / "b.tar")):
            sample.picture(), sample.latents(0), sample.features("empty")


def foreign_tar(path: Path) -> str:
    with tarfile.open(path, "w") as tar:
        about = tarfile.TarInfo("a.jpg")
        about.size = 3
        tar.addfile(about, io.BytesIO(b"abc"))
    return str(path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: str(folder / "none.tar"), "there is no such shard"),
        (lambda folder: str(folder), "it is a folder: name the shards in it"),
        (lambda folder: foreign_tar(folder / "b.tar"), "python -m lazydiff prepare"),
        (lambda folder: "pipe:cat " + str(folder / "none.tar") + " 2>/dev/null", "cannot be read"),
    ],
)
def test_what_is_no_shard_is_told(make: Callable[[Path], str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=told):
        read_header(make(tmp_path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"kind": "lazydiffusion shard", "format": 9}', "format 9 is unknown"),
        (b'{"kind": "lazydiffusion shard", "format": 1, "size": -3, "vae": null, "text": null}', "damaged"),
        (b'{"kind": "lazydiffusion shard", "format": 1, "vae": 3, "text": null}', "damaged"),
        (b'{"kind": "another", "format": 1}', "unknown|damaged"), (b"[]", "damaged"), (b"\xff", "damaged"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_told(content: bytes, told: str) -> None:
    with pytest.raises(ShardError, match=told):
        ShardHeader.of_bytes("x.tar", content)


def webp(width: int) -> bytes:
    return picture_bytes(np.zeros((SIZE, width, 3), np.uint8))


def described(**mask: object) -> bytes:
    return json.dumps({"caption": "", "holes": [{"caption": "", "mask": {"size": [SIZE, SIZE], **mask}}]}).encode()


def latents(**changes: torch.Tensor) -> bytes:
    usual = {"mean": torch.zeros(4, 2, 2), "deviation": torch.zeros(4, 2, 2), "visible.mean": torch.zeros(1, 4, 2, 2)}
    return tensor_bytes(usual | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({PICTURE: b"abc"}, "picture cannot be read"), ({PICTURE: None}, "picture cannot be read"),
        ({PICTURE: members(0)[PICTURE][:-60]}, "picture cannot be read"),
        ({PICTURE: webp(24)}, "its picture is 24×16"),
        ({DESCRIPTION: None}, "description"), ({DESCRIPTION: b"{}"}, "description"),
        ({DESCRIPTION: b"\xff\xfe"}, "UTF-8"),
        ({DESCRIPTION: b'{"caption": 3, "holes": [{"caption": "", "mask": 3}]}'}, "no text"),
        ({DESCRIPTION: described(size=[24, 24], counts="04")}, r"a mask is of \[24, 24\]"),
        ({DESCRIPTION: described(counts=encode_mask(np.ones((24, 24))))}, "run lengths of mask 0"),
        ({DESCRIPTION: described(counts=encode_mask(np.ones((12, 12))))}, "run lengths of mask 0"),
        ({DESCRIPTION: described(counts="04")}, "run lengths"), ({DESCRIPTION: described()}, "run lengths"),
        ({LATENT: b"abc"}, "damaged or missing"), ({LATENT: None}, "damaged or missing"),
        ({LATENT: latents(mean=torch.zeros(3, 2, 2))}, "of another size"),
        ({LATENT: tensor_bytes({"mean": torch.zeros(4, 2, 2)})}, "a part of its latents"),
        ({LATENT: latents(deviation=torch.full((4, 2, 2), torch.nan))}, "not numbers"),
        ({TEXT: tensor_bytes({"0": torch.zeros(3, 5)})}, "another width"),
        ({TEXT: tensor_bytes({"0": torch.full((3, 6), torch.inf)})}, "not numbers"),
    ],
)  # fmt: skip
def test_a_damaged_sample_is_told(changes: dict[str, bytes | None], told: str) -> None:
    with pytest.raises(ShardError, match=rf"x\.tar, sample a: .*{told}"):
        sample = sample_of(**changes)
        sample.picture(), sample.mask(0), sample.latents(0), sample.features(0)


def test_patterns_name_shards(tmp_path: Path) -> None:
    for name in ("0", "1", "x"):
        (tmp_path / f"{name}.tar").touch()
    assert expand_shards(f"{tmp_path}/{{0..1}}.tar") == [f"{tmp_path}/{i}.tar" for i in range(2)]
    assert expand_shards(f"{tmp_path}/*.tar::{tmp_path}/y.tar")[2:] == [f"{tmp_path}/x.tar", f"{tmp_path}/y.tar"]
    assert expand_shards("https://host/{7..8}.tar?a=*") == [f"https://host/{i}.tar?a=*" for i in (7, 8)]
    with pytest.raises(ValueError, match="there is no shard"):
        expand_shards(f"{tmp_path}/*.zip")
    with pytest.raises(ValueError, match="twice"):
        expand_shards(f"{tmp_path}/*.tar::{tmp_path}/x.tar")


def test_pictures_keep_every_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    with Image.open(io.BytesIO(picture_bytes(pixels))) as picture:
        assert (np.asarray(picture) == pixels).all()
