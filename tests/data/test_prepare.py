"""Preparation: what is stored is what the models make of it, and nothing is lost or repeated on the way."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.pictures import box, encoded, picture_file, pixels, save_coco, save_tar
from data.prepared import SMALLISH, prepare, samples, tars
from PIL import Image

from lazydiff.cli import main
from lazydiff.data import prepare as module
from lazydiff.data.encode import NOT_NUMBERS, Encoder
from lazydiff.data.entities import Entity
from lazydiff.data.holes import Hole
from lazydiff.data.samples import (
    NO_CAPTION,
    NO_ENTITY,
    SMALL,
    ModelFolders,
    Preparation,
    central_square,
    crop_to_hole,
)
from lazydiff.data.shards import read_header
from lazydiff.data.sources import FolderSource, Picture, SceneSource, SourceItem
from lazydiff.data.webdatasets import WebdatasetSource
from lazydiff.model.pretrained import load_text_encoder, load_vae
from lazydiff.pipeline.fit import Crop

# What is stored


def test_stored_latents_are_the_papers_equation_1(pictures: Path, folders: ModelFolders, tmp_path: Path) -> None:
    """The VAE's posterior of I and of I ⊙ (1 − M), of the very pixels that are stored; half precision keeps 11 bits."""
    prepare(FolderSource(pictures), tmp_path / "out", SMALLISH, folders)
    assert folders.vae and folders.text_encoder
    vae, text, found = load_vae(folders.vae), load_text_encoder(folders.text_encoder), samples(tmp_path / "out")
    assert sorted(found) == [f"p{i}" for i in range(5)]
    for sample in found.values():
        image = torch.from_numpy(sample.picture()).permute(2, 0, 1)[None] / 127.5 - 1
        tensors = sample.tensors("latent.safetensors")
        for hole, caption in enumerate(sample.captions):
            visible = image.clone()
            visible[..., torch.from_numpy(sample.mask(hole))] = 0
            posterior = vae.vae.encode(visible).latent_dist
            expected = [part[0] * vae.vae.config.scaling_factor for part in (posterior.mean, posterior.std)]
            for name, values in zip(("visible.mean", "visible.deviation"), expected, strict=True):
                assert torch.allclose(torch.from_numpy(tensors[name][hole]).float(), values, rtol=2**-11, atol=1e-6)
            states, mask = text([caption])
            assert mask.all()
            # Captions of one picture are computed together, which moves the last bits of float32.
            assert np.allclose(sample.features(hole), states[0], rtol=2**-10, atol=1e-4)
        posterior = vae.vae.encode(image).latent_dist
        mean, deviation, _ = sample.latents(0)
        assert np.allclose(mean, posterior.mean[0] * vae.vae.config.scaling_factor, rtol=2**-11, atol=1e-6)
        assert np.allclose(deviation, posterior.std[0] * vae.vae.config.scaling_factor, rtol=2**-11, atol=1e-6)
        assert np.allclose(sample.features("empty"), text([""])[0][0], rtol=2**-11, atol=1e-6)


def test_pictures_are_scaled_to_their_shorter_side_and_cut_in_the_middle() -> None:
    image = Image.fromarray(pixels(0))
    assert (np.asarray(central_square(image, 40)) == pixels(0)[:, 8:48]).all()
    middle = image.crop((8, 0, 48, 40)).resize((32, 32), Image.Resampling.LANCZOS)
    assert (np.asarray(central_square(image, 32)) == np.asarray(middle)).all()


def test_entities_are_cut_like_their_pictures(tmp_path: Path) -> None:
    """A white square in the picture is where its mask is, whatever the hole around it."""
    image, mask = np.zeros((80, 112, 3), np.uint8), box(20, 36, 32, shape=(80, 112))
    image[mask] = 255
    members = {"png": picture_file(image), "json": {"annotations": [{"segmentation": encoded(mask), "caption": "it"}]}}
    url = save_tar(tmp_path / "0.tar", {f"{i}": members for i in range(12)})
    for crop in (False, True):
        prepare(WebdatasetSource(str(url)), tmp_path / f"{crop}", replace(SMALLISH, crop=crop))
        for sample in samples(tmp_path / f"{crop}").values():
            white = sample.picture().min(-1) > 128
            assert white.any() and sample.mask(0)[white].mean() > 0.98  # a pixel of its edge may be cut


def test_crops_are_the_squares_of_the_pipeline(pictures: Path, tmp_path: Path) -> None:
    prepare(FolderSource(pictures), tmp_path / "out", replace(SMALLISH, crop=True, size=24))
    found = samples(tmp_path / "out")
    assert {key.partition("-")[2] for key in found} == {"0", "1"}
    assert all(sample.picture().shape == (24, 24, 3) and len(sample.captions) == 1 for sample in found.values())
    assert read_header(str(tmp_path / "out" / "00000.tar")).crop
    mask = box(shape=(40, 40))
    image = central_square(Image.fromarray(pixels(1)), 40)
    picture, _, [hole] = crop_to_hole(image, Hole(mask, "it"), 24)
    crop = Crop.around(torch.from_numpy(mask)[None].float())
    view = image.crop((crop.left, crop.top, crop.left + crop.size, crop.top + crop.size))
    assert (crop.top, crop.left, crop.size) == (10, 18, 16) and hole.mask.all()
    # Pillow's bicubic has another constant (−0.5) than torch's (−0.75), so only what is smooth agrees.
    mean = np.asarray(view.resize((24, 24), Image.Resampling.BICUBIC)).mean()
    assert np.asarray(picture).mean() == pytest.approx(mean, abs=2)


def test_given_holes_stay_as_they_are(tmp_path: Path) -> None:
    """Scenes, and shards of our own that get a VAE later."""
    prepare(SceneSource(3, 96, 0), tmp_path / "one", Preparation(96, shard_size=3, smallest=1))
    prepare(WebdatasetSource(f"{tmp_path}/one/00000.tar"), tmp_path / "two", Preparation(96, smallest=1, seed=9))
    one, two = samples(tmp_path / "one"), samples(tmp_path / "two")
    assert [*one] == [*two] == ["00000000", "00000001", "00000002"]
    for key, item in zip(one, SceneSource(3, 96, 0).units(3)[0], strict=True):
        scene = item.read()
        assert (one[key].picture() == np.asarray(scene.image)).all()
        assert (one[key].mask(0) == scene.holes[0].pixels()).all() and (one[key].mask(0) == two[key].mask(0)).all()
        assert one[key].captions == two[key].captions == (scene.holes[0].caption,)


def test_captions_are_cut_where_the_text_encoder_ends(folders: ModelFolders) -> None:
    assert folders.text_encoder
    text = load_text_encoder(folders.text_encoder, max_length=9)
    encoder, long = Encoder(None, text), "a photograph of a red house on a green hill"
    short = encoder.cut(long)
    assert long.startswith(f"{short} ") and len(text.split(short)) <= 9
    following = long[len(short) :].split()[0]
    assert len(text.split(f"{short} {following}")) > 9
    word = "house" * 20
    assert word.startswith(encoder.cut(word)) and len(text.split(encoder.cut(word))) == 9
    assert encoder.cut("a red house") == "a red house" and Encoder(None, None).cut(long) == long


def test_captions_that_were_cut_are_counted(pictures: Path, folders: ModelFolders, tmp_path: Path) -> None:
    (pictures / "p0.mask.0.txt").write_text("a red house " * 60)
    report = prepare(FolderSource(pictures), tmp_path / "out", SMALLISH, folders)
    assert report.cut <= 1 and sum("a red house" in text for s in samples(tmp_path / "out").values()
                                   for text in s.captions) == report.cut == 1  # fmt: skip


# Refusals


@dataclass(frozen=True)
class Given:
    """Pictures that a test has in its hands."""

    found: tuple[tuple[str, Picture], ...]
    identity = "given"

    @property
    def count(self) -> int:
        return len(self.found)

    def units(self, pictures: int) -> Sequence[Iterable[SourceItem]]:
        return [[GivenItem(key, picture) for key, picture in self.found]]


@dataclass(frozen=True)
class GivenItem:
    key: str
    picture: Picture

    def read(self) -> Picture:
        return self.picture


def test_each_refusal_is_told_and_no_run_ends_by_it(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(0))
    good, speck = Entity.of_mask(box(), "thing"), Entity.of_mask(box(side=1), "speck")
    beside = Entity.of_mask(box(0, 0, 6), "beyond the middle")
    whole = Entity.of_mask(np.ones((40, 56), bool), "all")
    found = {
        "good": Picture(image, None, [speck, beside, whole, good]),
        "small": Picture(Image.fromarray(pixels(0, (31, 90))), None, [good]),
        "nothing": Picture(image, "caption"),
        "speck": Picture(image, "caption", [speck, beside, whole]),
        "speechless": Picture(image, None, [good._replace(caption=None)]),
        "gone": Picture(image, None, holes=[beside]),
    }
    given = Given((*found.items(), ("good", found["good"])))
    report = prepare(given, tmp_path / "out", SMALLISH)
    reasons = {one.key: one.reason for one in report.refused}
    assert reasons == {
        "small": SMALL, "nothing": NO_ENTITY, "speck": NO_ENTITY, "speechless": NO_CAPTION, "gone": NO_ENTITY,
        "good": module.TWICE,
    }  # fmt: skip
    assert (report.pictures, report.samples, report.holes) == (7, 1, 1)
    assert samples(tmp_path / "out")["good"].captions == ("thing",)
    written = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert written["pictures"] == 7 and written["refused"][NO_ENTITY] == 3
    with (tmp_path / "out" / "refused.csv").open(encoding="utf-8", newline="") as file:
        assert {row["key"]: row["reason"] for row in csv.DictReader(file)} == reasons
    assert f"{NO_ENTITY}" in report.table() and "7" in report.table()


def test_a_shard_without_samples_is_not_written(tmp_path: Path) -> None:
    report = prepare(Given((("x", Picture(Image.fromarray(pixels(0)), None)),)), tmp_path, SMALLISH)
    assert not tars(tmp_path) and report.pictures == 1
    again = prepare(Given((("x", Picture(Image.fromarray(pixels(0)), None)),)), tmp_path, SMALLISH)
    assert again == report


def test_latents_that_are_not_numbers_are_refused(
    pictures: Path, folders: ModelFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Encoder.latents

    def broken(self: Encoder, vae: Any, image: np.ndarray, masks: Any) -> dict[str, torch.Tensor]:
        found = before(self, vae, image, masks)
        return {**found, "mean": found["mean"] * 1e9} if (image[0, 0] == first).all() else found

    first = np.asarray(central_square(Image.fromarray(pixels(0)), 32))[0, 0]
    monkeypatch.setattr(Encoder, "latents", broken)
    report = prepare(FolderSource(pictures), tmp_path / "out", SMALLISH, folders)
    assert report.reasons == {NOT_NUMBERS: 1} and report.samples == 4


# The command


def errors(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["prepare", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_cannot_be_prepared_is_told_in_a_line(
    pictures: Path, folders: ModelFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ("--images", pictures, "--output", tmp_path / "out")
    both = ("--vae", folders.vae, "--text-encoder", folders.text_encoder)
    for arguments, words in (
        (("--images", tmp_path / "no", "--output", tmp_path), "no such folder"),
        (("--scenes", 3, "--size", 48, "--output", tmp_path), "choose 96"),
        (("--webdataset", f"{tmp_path}/*.tar", "--output", tmp_path), "no shard"),
        (("--scenes", 3, "--coco", tmp_path, "--output", tmp_path), "--images"),
        ((*images, "--captions", tmp_path), "--coco"),
        ((*images, "--plain", 0.5), "--plain is for --scenes of another size than 96"),
        (("--scenes", 4, "--plain", 0.5, "--output", tmp_path), "--plain is for --scenes of another size than 96"),
        ((*images, "--size", 8), "size is 8"),
        ((*images, "--holes", 0), "holes is 0"),
        ((*images, "--processes", 0), "0 processes"),
        ((*images, "--size", 36, *both), "multiple of the VAE's cell, 8 px"),
        ((*images, "--vae", tmp_path, "--text-encoder", folders.text_encoder), "config.json"),
        ((*images, "--vae", folders.vae), "--vae without --text-encoder"),
        ((*images, "--size", 0), "size is 0"),
        ((*images, "--captioner", tmp_path / "no"), "no such folder"),
    ):
        assert words in errors(capsys, *arguments)


def test_the_table_and_the_report_are_of_all_that_was_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instances, captions = save_coco(tmp_path)
    arguments = ["prepare", "--coco", instances, "--captions", captions, "--images", tmp_path, "--size", 32]
    for _ in range(2):
        assert main([*map(str, arguments), "--output", str(tmp_path / "out"), "--processes", "1"]) == 0
        table = capsys.readouterr().out.splitlines()
        assert table[0].split() == ["pictures", "2"] and table[2].split() == ["holes", "3"]


def test_missing_packages_are_told_by_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith("lazydiff.data")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert 'pip install "lazydiffusion[train]"' in errors(capsys, "--scenes", 1, "--output", tmp_path)
