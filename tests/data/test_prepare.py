"""Preparation: what is stored is what the models make of it, and nothing is lost or repeated on the way."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.pictures import box, encoded, picture_file, pixels, save_coco, save_picture, save_tar
from PIL import Image
from public_folders import save_text_encoder, save_vae

from lazydiff.cli import main
from lazydiff.core.locks import alone
from lazydiff.data import prepare as module
from lazydiff.data import shards
from lazydiff.data.encode import NOT_NUMBERS, Encoder
from lazydiff.data.entities import Entity
from lazydiff.data.holes import Hole
from lazydiff.data.prepare import prepare_shards
from lazydiff.data.samples import (
    NO_CAPTION,
    NO_ENTITY,
    SMALL,
    ModelFolders,
    Preparation,
    Preparer,
    central_square,
    crop_to_hole,
)
from lazydiff.data.shards import ShardSample, read_header, read_shard
from lazydiff.data.sources import FolderSource, Picture, SceneSource, SourceItem
from lazydiff.data.webdatasets import WebdatasetSource
from lazydiff.model.pretrained import load_text_encoder, load_vae
from lazydiff.pipeline.fit import Crop

SMALLISH = Preparation(size=32, smallest=32, shard_size=2)
prepare = partial(prepare_shards, processes=1)  # others take seconds to start
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> ModelFolders:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    return ModelFolders(save_vae(folder / "vae"), save_text_encoder(folder / "text"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(5):
        save_picture(tmp_path / "pictures", f"p{i}", i, masks=2)
    return tmp_path / "pictures"


def tars(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def samples(folder: Path) -> dict[str, ShardSample]:
    found = [sample for path in sorted(folder.glob("*.tar")) for sample in read_shard(str(path))]
    return {sample.where.rpartition(" ")[2]: sample for sample in found}


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


# On from where it was


def test_two_processes_make_the_same_shards(pictures: Path, folders: ModelFolders, tmp_path: Path) -> None:
    """Latents included: this process and each of the two compute with one thread."""
    vae = ModelFolders(vae=folders.vae)
    one = prepare(FolderSource(pictures), tmp_path / "one", SMALLISH, vae)
    two = prepare_shards(FolderSource(pictures), tmp_path / "two", SMALLISH, vae, processes=2)
    assert tars(tmp_path / "one") == tars(tmp_path / "two") and len(tars(tmp_path / "one")) == 3
    assert one == two


def test_finished_shards_are_not_made_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = prepare(FolderSource(pictures), out, SMALLISH)
    whole, made = tars(out), []
    (out / "00001.tar").write_bytes((out / "00001.tar").read_bytes()[:1000])
    (out / "parts" / "00002.json").unlink()
    before = Preparer.samples
    monkeypatch.setattr(Preparer, "samples", lambda self, item: [made.append(item.key), before(self, item)][1])
    assert prepare(FolderSource(pictures), out, SMALLISH) == report
    last = [item.key for unit in FolderSource(pictures).units(SMALLISH.shard_size)[1:] for item in unit]
    assert made == last and len(made) == 3 and tars(out) == whole


SCENES = ("--scenes", 600, "--shard-size", 100)  # a second of work each, so that it can be stopped between them


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 scenes that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["prepare", *map(str, SCENES), "--processes", "1", "--output", str(out)]) == 0
    return out


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_it_ends_with_the_same_bytes(
    how: signal.Signals, unbroken: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "lazydiff", "prepare", *map(str, SCENES), "--processes", "2", "--output"]
    process = subprocess.Popen([*command, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: tars(tmp_path), process)
    os.kill(process.pid, how) if how == signal.SIGKILL else os.killpg(process.pid, how)
    _, told = process.communicate(timeout=60)  # its workers hold the pipe: they have ended too
    made, whole = tars(tmp_path), tars(unbroken)
    assert len(made) < 6 and made.items() <= whole.items()
    if how == signal.SIGINT:
        assert process.returncode == 130 and b"Traceback" not in told and b"stopped" in told
        assert not list(tmp_path.glob(".*.tar.*"))
    assert main(["prepare", *map(str, SCENES), "--processes", "1", "--output", str(tmp_path)]) == 0
    assert tars(tmp_path) == whole and not list(tmp_path.glob(".*.tar.*"))
    assert (tmp_path / "report.json").read_bytes() == (unbroken / "report.json").read_bytes()


def wait_for(found: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not found():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)


def test_what_is_prepared_with_anything_else_is_refused(pictures: Path, folders: ModelFolders, tmp_path: Path) -> None:
    out, source = tmp_path / "out", FolderSource(pictures)
    prepare(source, out, SMALLISH)
    before = tars(out)
    for settings, models, word in (
        (replace(SMALLISH, size=24), ModelFolders(), "size was 32 and is now 24"),
        (replace(SMALLISH, seed=1), ModelFolders(), "seed"),
        (SMALLISH, ModelFolders(vae=folders.vae), "VAE"),
        (SMALLISH, ModelFolders(text_encoder=folders.text_encoder), "text encoder"),
    ):
        with pytest.raises(ValueError, match=word):
            prepare(source, out, settings, models)
    save_picture(pictures, "another", 8)
    with pytest.raises(ValueError, match="source was folder"):
        prepare(FolderSource(pictures), out, SMALLISH)
    assert tars(out) == before
    (out / "prepare.json").unlink()
    with pytest.raises(ValueError, match="made by something else"):
        prepare(source, out, SMALLISH)


def test_two_preparations_do_not_share_a_folder(pictures: Path, tmp_path: Path) -> None:
    with alone(tmp_path, "preparation"), pytest.raises(ValueError, match="another preparation is at work"):
        prepare(FolderSource(pictures), tmp_path, SMALLISH)


@pytest.mark.parametrize("number", range(1, 8, 2))
def test_a_full_disk_leaves_nothing_that_counts_as_done(
    number: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full at one of the first writes."""
    out, whole, before, count = tmp_path / "out", tmp_path / "whole", shards.ShardWriter.add, 0

    def full(self: shards.ShardWriter, *sample: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        before(self, *sample)

    arguments = ["prepare", "--images", str(pictures), "--size", "32", "--shard-size", "2", "--processes", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "add", full)
        assert main([*arguments, "--output", str(out)]) == (2 if number <= 5 else 0)
    if number <= 5:
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ") and "cannot be written (No space left on device)" in line
        assert f"{(number - 1) // 2:05d}.tar" not in tars(out) and not list(out.glob(".*.tar.*"))
    made = tars(out)
    assert main([*arguments, "--output", str(out)]) == main([*arguments, "--output", str(whole)]) == 0
    assert tars(out) == tars(whole) == {**tars(whole), **made}


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
