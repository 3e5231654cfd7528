"""Removal on photographs that no model here has seen: those of scikit-image's wheel, with holes at fixed places, filled
by the model with "background" and by two methods that know no pictures but the one before them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..core.pictures import from_array
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.edit import edit
from ..world import BACKGROUND
from .edges import roughness, seam
from .item_fit import distances, signal_to_noise

PACKAGES = {"skimage": "scikit-image", "cv2": "opencv-python-headless"}
RADIUS = 5  # px that Telea's method looks around a pixel, OpenCV's own example


class Place(NamedTuple):
    """A hole in the central square of a photograph: middle and sides, in sides of that; an ellipse, or a box."""

    name: str
    x: float
    y: float
    width: float
    height: float
    round: bool

    def mask(self, size: int) -> np.ndarray:
        """bool [size, size], True = hole"""
        at = (np.arange(size) + 0.5) / size
        u, v = np.abs(at[None] - self.x) / self.width * 2, np.abs(at[:, None] - self.y) / self.height * 2
        inside: np.ndarray = np.hypot(u, v) <= 1 if self.round else np.maximum(u, v) <= 1
        return inside


PLACES = (
    Place("astronaut.png", 0.80, 0.20, 0.28, 0.34, True), Place("chelsea.png", 0.20, 0.75, 0.30, 0.30, False),
    Place("coffee.png", 0.50, 0.45, 0.34, 0.30, True), Place("rocket.jpg", 0.25, 0.30, 0.36, 0.30, False),
    Place("motorcycle_left.png", 0.45, 0.20, 0.40, 0.30, True),
    Place("hubble_deep_field.jpg", 0.5, 0.5, 0.35, 0.40, True),
    Place("brick.png", 0.45, 0.50, 0.30, 0.30, False), Place("grass.png", 0.55, 0.45, 0.36, 0.40, True),
    Place("gravel.png", 0.50, 0.60, 0.30, 0.28, False), Place("coins.png", 0.40, 0.45, 0.25, 0.30, True),
)  # fmt: skip


def can_open_photographs() -> bool:
    """Whether the packages are there, which are of development alone."""
    return all(find_spec(name) is not None for name in PACKAGES)


def photograph(name: str, size: int) -> np.ndarray:
    """The central square of a picture of scikit-image's wheel, uint8 [size, size, 3]."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
        return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def telea(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Source: Telea 2004, as OpenCV has it."""
    import cv2

    filled: np.ndarray = cv2.inpaint(np.ascontiguousarray(image), mask.astype(np.uint8), RADIUS, cv2.INPAINT_TELEA)
    return filled


def biharmonic(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Source: Damelin & Hoang 2018, as scikit-image has it."""
    from skimage.restoration import inpaint_biharmonic

    filled: np.ndarray = inpaint_biharmonic(image / 255, mask, channel_axis=-1)
    return np.round(filled.clip(0, 1) * 255).astype(np.uint8)


def photograph_answers(model: LazyDiffusion, size: int) -> dict[str, np.ndarray]:
    """The photographs and what each method makes of them, uint8 [10, size, size, 3], by "truth" and its name."""

    def ours(canvas: np.ndarray, mask: np.ndarray) -> np.ndarray:
        made = edit(model, from_array(canvas), torch.from_numpy(mask)[None, None].float(), BACKGROUND)
        return (made[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()

    methods: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "ours": ours, "telea": telea, "biharmonic": biharmonic,
    }  # fmt: skip
    truths = [photograph(place.name, size) for place in PLACES]
    masks = [place.mask(size) for place in PLACES]
    grey = np.uint8(128)
    canvases = [np.where(mask[..., None], grey, truth) for truth, mask in zip(truths, masks, strict=True)]
    filled = {
        name: np.stack([fill(canvas, mask) for canvas, mask in zip(canvases, masks, strict=True)])
        for name, fill in methods.items()
    }
    return {"truth": np.stack(truths), **filled}


def photograph_figures(answers: dict[str, np.ndarray]) -> dict[str, float]:
    """PSNR in the holes (mean over the pictures), and seam and roughness against the photographs'."""
    truth, figures = answers["truth"], {}
    holes = np.stack([place.mask(truth.shape[1]) for place in PLACES])
    for name, pictures in answers.items():
        if name == "truth":
            continue
        ending = "" if name == "ours" else f"_{name}"
        pairs = zip(pictures, truth, holes, strict=True)
        decibels = [signal_to_noise(distances(made, true, hole)) for made, true, hole in pairs]
        figures[f"photo_psnr{ending}"] = float(np.mean(decibels))
        figures[f"photo_seam_ratio{ending}"] = seam(pictures, holes) / seam(truth, holes)
        figures[f"photo_roughness_ratio{ending}"] = roughness(pictures, holes) / roughness(truth, holes)
    figures["photo_psnr_minus_telea"] = figures["photo_psnr"] - figures["photo_psnr_telea"]
    return figures
