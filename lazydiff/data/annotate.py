"""Masks and captions that are missing, from models of transformers whose weights a user has; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .entities import Entity

WORDS = 40  # tokens of a caption at most
PADDING = 0.1  # of an entity's sides, that its crop is wider on each side


class Segmenter:
    """Finds the things in a picture (SAM and its kind, through transformers' mask generation)."""

    def __init__(self, folder: Path, device: torch.device):
        """Errors: ValueError for a folder that is no such model; ImportError without torchvision."""
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline
        from transformers.utils import is_torchvision_available

        if not is_torchvision_available():
            raise ImportError("finding masks needs torchvision: pip install the one that goes with your torch")
        self.model = read_pretrained(AutoModelForMaskGeneration, folder).to(device).eval()
        processor = read_pretrained(AutoImageProcessor, folder)
        self.generate = pipeline("mask-generation", model=self.model, image_processor=processor, device=device)

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> list[Entity]:
        """The best first; none has a caption."""
        found = self.generate(image)
        return [Entity.of_mask(np.asarray(mask, dtype=bool), None) for mask in found["masks"]]


class Captioner:
    """Says what a picture shows (BLIP and its kind)."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        """Errors: ValueError for a folder that is no such model."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = read_pretrained(AutoModelForImageTextToText, folder).to(device, dtype).eval()
        self.processor = read_pretrained(AutoProcessor, folder)

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> str | None:
        """A caption without sampling; None where the model has no words for it."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=WORDS, do_sample=False, num_beams=1)
        return " ".join(self.processor.decode(tokens[0], skip_special_tokens=True).split()) or None

    def entity(self, image: Image.Image, mask: np.ndarray) -> str | None:
        """A caption of what a mask [H, W] bool covers, from its surroundings."""
        return self(image.crop(padded_box(mask)))


def padded_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and lower end of a mask [H, W] bool with some room, inside the picture."""
    ends = []
    for axis in (0, 1):
        places = np.flatnonzero(mask.any(axis))
        room = round(PADDING * (places[-1] + 1 - places[0]))
        ends.append((max(int(places[0]) - room, 0), min(int(places[-1]) + 1 + room, mask.shape[1 - axis])))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def read_pretrained(kind: Any, folder: Path) -> Any:
    """A model or processor of transformers from a folder. Errors: ValueError for one that is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the library makes of damaged files
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder}: it is no model for this ({reason})") from error
