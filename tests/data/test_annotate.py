"""Masks and captions that are missing come from a user's models, which are tiny and random here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.utils
from data.public_annotators import WORDS, save_captioner, save_segmenter
from PIL import Image
from transformers.models.sam import image_processing_pil_sam

from lazydiff.data.annotate import Captioner, Segmenter, padded_box
from lazydiff.data.samples import ModelFolders, Preparation, Preparer
from lazydiff.data.shards import ShardSample
from lazydiff.data.sources import PictureFile

CPU = torch.device("cpu")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("segmenter"))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one function of it that mask generation calls suppresses what overlaps; here the first few masks stay."""

    def some(self: Any, masks: list[Any], scores: Any, boxes: Any, threshold: float) -> tuple[Any, ...]:
        return [image_processing_pil_sam._rle_to_mask(mask) for mask in masks[:9]], scores[:9], masks[:9], boxes[:9]

    if not transformers.utils.is_torchvision_available():
        monkeypatch.setattr(transformers.utils, "is_torchvision_available", lambda: True)
        kind = image_processing_pil_sam.SamImageProcessorPil
        monkeypatch.setattr(kind, "post_process_for_mask_generation", some)


def test_a_caption_is_of_words(captioner: Path) -> None:
    caption = Captioner(captioner, CPU, torch.float32)(IMAGE)
    assert caption and {*caption.split()} <= {*WORDS[7:]}


def test_an_entitys_caption_is_that_of_its_surroundings(captioner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask, seen = Captioner(captioner, CPU, torch.float32), np.zeros((48, 64), bool), []
    mask[10:30, 40:60] = True
    monkeypatch.setattr(Captioner, "__call__", lambda self, image: seen.append(np.asarray(image)))
    model.entity(IMAGE, mask)
    assert (seen[0] == np.asarray(IMAGE)[8:32, 38:62]).all()


def test_the_box_around_an_entity_is_a_tenth_wider_on_each_side_and_ends_with_the_picture() -> None:
    mask = np.zeros((50, 80), bool)
    mask[0:20, 60:80] = True
    assert padded_box(mask) == (58, 0, 80, 22)


def test_masks_are_of_the_pictures_size(segmenter: Path, torchvision: None) -> None:
    entities = Segmenter(segmenter, CPU)(IMAGE)
    assert entities and {entity.pixels().shape for entity in entities} == {(48, 64)}
    assert all(entity.caption is None and entity.pixels().any() for entity in entities)


def test_a_picture_without_anything_gets_masks_and_captions(
    segmenter: Path, captioner: Path, torchvision: None, tmp_path: Path
) -> None:
    IMAGE.save(tmp_path / "x.png")
    preparer = Preparer(Preparation(48, smallest=48), ModelFolders(segmenter=segmenter, captioner=captioner))
    [sample] = preparer.samples(PictureFile("x", tmp_path / "x.png", ()))
    read = ShardSample.of_members("", preparer.header, sample.key, sample.members)
    assert read.caption and len(read.captions) == 3 and all(read.captions)
    assert all(read.mask(i).any() for i in range(3))


def test_without_torchvision_it_says_so(segmenter: Path) -> None:
    if transformers.utils.is_torchvision_available():
        pytest.skip("torchvision is installed")
    with pytest.raises(ImportError, match="pip install"):
        Segmenter(segmenter, CPU)


@pytest.mark.parametrize("kind", [Segmenter, Captioner])
def test_a_folder_without_a_model_is_told(kind: Any, torchvision: None, tmp_path: Path) -> None:
    rest = () if kind is Segmenter else (torch.float32,)
    with pytest.raises(ValueError, match="no such folder"):
        kind(tmp_path / "nothing", CPU, *rest)
    with pytest.raises(ValueError, match="no model for this"):
        kind(tmp_path, CPU, *rest)
