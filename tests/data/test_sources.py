"""What sources find, in which order, and why they refuse what they refuse."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.pictures import (
    SHAPE,
    box,
    encoded,
    picture_file,
    pixels,
    runs_of,
    save_coco,
    save_mask,
    save_picture,
    save_tar,
)
from PIL import Image

from lazydiff.data import coco, entities, sources, webdatasets
from lazydiff.data.coco import CocoSource
from lazydiff.data.entities import Entity, Refusal, count_pixels
from lazydiff.data.sources import FolderSource, SceneSource, Source, SourceItem, WorldSource, key_of
from lazydiff.data.webdatasets import WebdatasetSource
from lazydiff.scenes import random_sample
from lazydiff.world import random_world_sample


def items(source: Source, pictures: int = 1000) -> list[SourceItem]:
    """As they come out of worker processes' hands, by their keys."""
    found = [item for unit in source.units(pictures) for item in pickle.loads(pickle.dumps(unit))]
    return sorted(found, key=lambda item: item.key)


def test_shards_mix_what_stands_together_by_name(tmp_path: Path) -> None:
    """The same way each time."""
    for number in range(40):
        save_picture(tmp_path, f"{'cat' if number < 20 else 'dog'}{number}", 0)
    first, second, again = ([item.key for item in unit] for unit in (*FolderSource(tmp_path).units(20),
                                                                      FolderSource(tmp_path).units(20)[0]))  # fmt: skip
    assert first == again and not set(first) & set(second) and len(first) == len(second) == 20
    assert 4 < sum(key.startswith("cat") for key in first) < 16 and first != sorted(first)


def refused(item: SourceItem) -> Refusal:
    with pytest.raises(Refusal) as caught:
        item.read()
    return caught.value


# Entities


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_of_either_form_are_the_mask(seed: int) -> None:
    mask = np.random.default_rng(seed).random((7, 11)) < 0.4
    for segmentation in (encoded(mask), runs_of(mask)):
        assert (Entity.of_segmentation(segmentation, (7, 11), None).pixels() == mask).all()
    assert count_pixels(encoded(mask)["counts"].encode()) == 77


def test_large_differences_between_runs_are_counted() -> None:
    """Over 15, and negative: more than one byte each."""
    for counts in ([5000, 3, 1, 4000, 996], [0, 1, 9000, 900, 2, 97]):
        mask = np.concatenate([np.full(count, i % 2, bool) for i, count in enumerate(counts)]).reshape(100, 100)
        assert count_pixels(encoded(mask)["counts"].encode()) == 10000


def test_polygons_are_filled_and_added_and_end_with_the_picture() -> None:
    squares = [[18, 10, 34, 10, 34, 26, 18, 26], [0, 0, 4, 0, 4, 4, 0, 4], [50, 36, 60, 36, 60, 50, 50, 50]]
    expected = box() | box(0, 0, 4)
    expected[36:, 50:] = True
    assert (Entity.of_segmentation(squares, SHAPE, None).pixels() == expected).all()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [40, 55], "counts": [2200]}, entities.MASK_SIZE),
        ({"size": [40, 56], "counts": [2200]}, entities.RUN_LENGTHS),
        ({"size": [40, 56], "counts": [2300]}, entities.RUN_LENGTHS),
        ({"size": [40, 56], "counts": [-1, 2241]}, entities.RUN_LENGTHS),
        ({"size": [40, 56], "counts": encoded(box(shape=(40, 50)))["counts"]}, entities.RUN_LENGTHS),
        ({"size": [40, 56], "counts": encoded(box(shape=(40, 60)))["counts"]}, entities.RUN_LENGTHS),
        ({"size": [40, 56], "counts": "\x7f" * 9}, entities.RUN_LENGTHS),
        ({"size": [40, 56], "counts": ""}, entities.RUN_LENGTHS),
        ({"size": [40, 56]}, entities.RUN_LENGTHS),
        (None, entities.RUN_LENGTHS),
        ([], entities.OUTLINE),
        ([[1, 2, 3, 4]], entities.OUTLINE),
        ([[1, 2, 3, 4, 5, 6, 7]], entities.OUTLINE),
        ([["a"] * 6], entities.OUTLINE),
        ([[float("nan")] * 6], entities.OUTLINE),
    ],
)
def test_masks_that_cannot_be_are_refused(segmentation: Any, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        Entity.of_segmentation(segmentation, SHAPE, None)
    assert caught.value.reason == reason


# Folders


def test_a_folder_is_read_by_name_with_masks_and_captions(tmp_path: Path) -> None:
    save_picture(tmp_path, "b", 1, masks=2)
    save_picture(tmp_path, "deep/a b", 2, masks=0)
    save_picture(tmp_path, ".hidden/c", 3)
    (tmp_path / "notes.md").write_text("nothing to see")
    first, second = items(FolderSource(tmp_path))
    assert first.key == "b" and second.key.startswith("deep_a_b-")
    picture = first.read()
    assert (np.asarray(picture.image) == pixels(1)).all() and picture.caption == "picture b"
    assert [entity.caption for entity in picture.entities] == ["thing 0 of b", "thing 1 of b"]
    assert (picture.entities[1].pixels() == box(8, 17)).all()
    assert not second.read().entities


def test_one_mask_needs_no_number_and_captions_may_be_missing(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / "x.jpg")
    save_mask(box(), tmp_path / "x.mask.png")
    (tmp_path / "x.mask.txt").write_text(" \n")
    [item] = items(FolderSource(tmp_path))
    picture = item.read()
    assert picture.caption is None and [entity.caption for entity in picture.entities] == [None]


def test_pictures_of_one_name_keep_different_keys(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "y z.png", "y_z.png"):
        Image.fromarray(pixels(0)).save(tmp_path / name)
    assert len({item.key for item in items(FolderSource(tmp_path))}) == 4
    assert key_of("x" * 81) != key_of("x" * 82) and len(key_of("ü" * 500)) < 80


def test_a_folders_identity_is_what_is_in_it(tmp_path: Path) -> None:
    save_picture(tmp_path / "one", "x", 0)
    before = FolderSource(tmp_path / "one").identity
    (tmp_path / "one").rename(tmp_path / "two")
    assert FolderSource(tmp_path / "two").identity == before
    save_picture(tmp_path / "two", "y", 1)
    assert FolderSource(tmp_path / "two").identity != before


def lying_png(claimed: int) -> bytes:
    """A PNG of 30×20 whose header says another width."""
    content = bytearray(picture_file(pixels(0, (20, 30))))
    content[16:20] = claimed.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"no picture", sources.UNREADABLE, ""),
        (b"", sources.UNREADABLE, ""),
        (picture_file(pixels(0))[:900], sources.UNREADABLE, "truncated"),
        (picture_file(pixels(0), "jpeg")[:700], sources.UNREADABLE, "truncated"),
        (lying_png(3000), sources.UNREADABLE, "truncated"),
        (lying_png(20_000_000), sources.UNREADABLE, "too large"),
    ],
)
def test_damaged_pictures_are_refused(content: bytes, reason: str, detail: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    [item] = items(FolderSource(tmp_path))
    refusal = refused(item)
    assert refusal.reason == reason and detail in refusal.detail and "\n" not in refusal.detail


def test_what_else_a_folder_may_have_wrong(tmp_path: Path) -> None:
    for name in ("mask", "text", "clear"):
        save_picture(tmp_path, name, 0)
    save_mask(box(shape=(40, 55)), tmp_path / "mask.mask.0.png")
    (tmp_path / "text.txt").write_bytes(b"caf\xe9")
    Image.fromarray(np.dstack((pixels(0), np.zeros(SHAPE, np.uint8)))).save(tmp_path / "clear.png")
    reasons = [refused(item).reason for item in items(FolderSource(tmp_path))]
    assert reasons == [sources.TRANSPARENT, entities.MASK_SIZE, sources.NOT_UTF8]


def test_folders_without_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture in it"):
        FolderSource(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        FolderSource(tmp_path / "x")


# COCO


def test_coco_is_read_without_crowds(tmp_path: Path) -> None:
    first, second = items(CocoSource(*save_coco(tmp_path), tmp_path))
    assert (first.key, second.key) == ("a", "b")
    picture = first.read()
    assert picture.caption == "A street" and second.read().caption is None
    assert [entity.caption for entity in picture.entities] == ["traffic light", "dog"]
    assert (picture.entities[0].pixels() == box()).all() and (picture.entities[1].pixels() == box(2, 12, 10)).all()
    assert (second.read().entities[0].pixels() == box()).all()
    unnamed = items(CocoSource(*save_coco(tmp_path), tmp_path, names=False))[0].read()
    assert [entity.caption for entity in unnamed.entities] == [None, None]


def test_coco_that_is_wrong_about_a_picture(tmp_path: Path) -> None:
    first, _ = items(CocoSource(*save_coco(tmp_path, segmentation=encoded(box(shape=(40, 55)))), tmp_path))
    assert refused(first).reason == entities.MASK_SIZE
    first, second = items(CocoSource(*save_coco(tmp_path), tmp_path))
    Image.fromarray(pixels(0, (40, 55))).save(tmp_path / "a.png")
    (tmp_path / "b.png").unlink()
    assert refused(first).reason == coco.OTHER_SIZE and refused(second).reason == sources.UNREADABLE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "no annotations"),
        ('{"annotations": [{}], "images": [], "categories": []}', "not a file of COCO instances"),
        ('{"annotations": [], "images": [{"id": 1}], "categories": []}', "not a file of COCO instances"),
        ('{"annotations": [], "images": [], "categories": []}', "no pictures"),
        (None, "no such file"),
    ],
)
def test_files_that_are_not_cocos_are_told(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        CocoSource(tmp_path / "x.json", None, tmp_path)


# Webdatasets


def test_a_webdataset_is_read_one_unit_for_each_tar(tmp_path: Path) -> None:
    annotations = [
        {"segmentation": encoded(box()), "caption": "a thing", "area": 256},
        {"segmentation": runs_of(box(2, 2))},
    ]
    said = {"height": SHAPE[0], "width": SHAPE[1]}
    sa = {"jpg": picture_file(pixels(0), "jpeg"), "json": {"image": said, "annotations": annotations, "caption": "all"}}
    plain = {"webp": picture_file(pixels(1), "webp"), "txt": b" in a  text\n"}
    holes = [{"caption": "it", "mask": encoded(box())}]
    ours = {"png": picture_file(pixels(2)), "json": {"caption": "", "holes": holes}}
    save_tar(tmp_path / "0.tar", {"sa_1": sa, "sub/sa 2": plain})
    save_tar(tmp_path / "1.tar", {"x": ours})
    source = WebdatasetSource(f"{tmp_path}/{{0..1}}.tar")
    assert [len([*unit]) for unit in source.units(1)] == [2, 1]
    first, second, third = (item.read() for item in items(source))
    assert first.caption == "all" and [entity.caption for entity in first.entities] == ["a thing", None]
    assert (first.entities[1].pixels() == box(2, 2)).all()
    assert second.caption == "in a text" and not second.entities
    assert third.caption is None and (third.holes[0].pixels() == box()).all() and third.holes[0].caption == "it"


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (b"\xff", sources.NOT_UTF8),
        (b"{", webdatasets.ANNOTATIONS),
        (b"[]", webdatasets.ANNOTATIONS),
        ({"annotations": [{}]}, webdatasets.ANNOTATIONS),
        ({"annotations": 3}, webdatasets.ANNOTATIONS),
        ({"caption": 3}, webdatasets.ANNOTATIONS),
        ({"image": {"height": 40, "width": 57}}, coco.OTHER_SIZE),
        ({"annotations": [{"segmentation": {"size": [40, 56], "counts": [1]}}]}, entities.RUN_LENGTHS),
    ],
)
def test_samples_that_are_wrong_are_refused(about: Any, reason: str, tmp_path: Path) -> None:
    url = save_tar(tmp_path / "0.tar", {"x": {"png": picture_file(pixels(0)), "json": about}})
    [item] = items(WebdatasetSource(str(url)))
    assert refused(item).reason == reason


def test_what_is_whole_of_a_damaged_tar_is_kept(tmp_path: Path) -> None:
    samples = {f"{i}": {"png": picture_file(pixels(i)), "txt": b"text"} for i in range(4)}
    whole = save_tar(tmp_path / "0.tar", samples).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: len(whole) // 2])
    *kept, damage = sorted(items(WebdatasetSource(f"{tmp_path}/0.tar")), key=lambda item: item.key.endswith(".tar"))
    assert [item.key for item in kept] == ["0"] and kept[0].read().caption == "text"
    assert refused(damage).reason == webdatasets.DAMAGED and damage.key.endswith("0.tar")
    (tmp_path / "0.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match="no tar"):
        items(WebdatasetSource(f"{tmp_path}/0.tar"))
    with pytest.raises(ValueError, match="no such file"):
        WebdatasetSource(f"{tmp_path}/1.tar")


# Scenes


def test_scenes_are_those_of_the_world() -> None:
    source = SceneSource(5, 96, seed=3)
    assert [len(unit) for unit in source.units(2)] == [2, 2, 1]  # type: ignore[arg-type]
    picture, sample = items(source)[4].read(), random_sample(np.random.default_rng([3, 4]))
    assert (np.asarray(picture.image) == sample.image).all()
    assert picture.holes[0].caption == sample.caption and (picture.holes[0].pixels() == sample.mask).all()
    with pytest.raises(ValueError, match="choose --size 96"):
        SceneSource(5, 64, 0)
    with pytest.raises(ValueError, match="at least 1"):
        SceneSource(0, 96, 0)


def test_pictures_of_the_world_come_with_their_holes() -> None:
    picture = items(WorldSource(3, 128, seed=5))[2].read()
    sample = random_world_sample(np.random.default_rng([5, 2]), 128)
    assert (np.asarray(picture.image) == sample.image).all() and picture.image.size == (128, 128)
    assert picture.holes[0].caption == sample.caption and (picture.holes[0].pixels() == sample.mask).all()
    assert items(WorldSource(1, 640, seed=5))[0].read().image.size == (640, 640)  # drawn so, not scaled up
    with pytest.raises(ValueError, match="a share of 2 plain scenes"):
        WorldSource(5, 128, 0, plain=2)
    with pytest.raises(ValueError, match="scenes of 48 px show nothing"):
        WorldSource(5, 48, 0)
    with pytest.raises(ValueError, match="at least 1"):
        WorldSource(0, 128, 0)


def test_some_pictures_of_the_world_are_on_plain_ground() -> None:
    """As many as are asked for, which ask for the same things in the same holes; the others are as ever."""
    usual, some = ([item.read() for item in items(WorldSource(24, 64, 5, plain))] for plain in (0, 0.5))
    changed = [np.any(np.asarray(a.image) != np.asarray(b.image)) for a, b in zip(usual, some, strict=True)]
    assert 4 < sum(changed) < 20
    for a, b in zip(usual, some, strict=True):
        assert a.holes[0].caption == b.holes[0].caption and (a.holes[0].pixels() == b.holes[0].pixels()).all()
    assert WorldSource(24, 64, 5, 0.5).identity != WorldSource(24, 64, 5).identity


def test_descriptions_are_cheap(tmp_path: Path) -> None:
    """They travel to the workers, a thousand to a shard."""
    save_coco(tmp_path)
    drawn = SceneSource(1, 96, 0), WorldSource(1, 256, 0)
    for source in (*drawn, FolderSource(tmp_path), CocoSource(*save_coco(tmp_path), tmp_path)):
        assert len(pickle.dumps(items(source)[0])) < 1000
    assert json.dumps([source.identity, source.count])
