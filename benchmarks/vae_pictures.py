"""Pictures from the world of scenes for a VAE: mosaics at all scales, gradients and textures, in all lights.

What a group norm finds is to differ from picture to picture and from place to place, as it does in photographs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lazydiff.scenes import CANVAS, random_scene, render

SCALES = 1.0, 6.0  # px of a picture to those of a scene
TEXTURE = 0.3  # the share of pictures without any scene


def picture(rng: np.random.Generator, size: int) -> Tensor:
    """A picture float32 [3, size, size] in -1…1. All randomness comes from `rng`."""
    image = texture(rng, size) if rng.random() < TEXTURE else mosaic(rng, size)
    if rng.random() < 0.5:  # light that changes across the picture
        image = image + smooth(rng, size, channels=1, cells=2) * rng.uniform(0, 0.5)
    return (image * rng.uniform(0.5, 1.1) + rng.uniform(-0.3, 0.3)).clamp(-1, 1)


def mosaic(rng: np.random.Generator, size: int) -> Tensor:
    """Scenes side by side, all enlarged alike."""
    scale = float(np.exp(rng.uniform(*np.log(SCALES))))
    tiles = int(np.ceil(size / (CANVAS * scale))) + 1  # one more than fit, so that the grid may begin anywhere
    rows = [np.concatenate([render(random_scene(rng)) for _ in range(tiles)], 1) for _ in range(tiles)]
    scenes = torch.from_numpy(np.concatenate(rows)).permute(2, 0, 1)[None].float() / 127.5 - 1
    start = rng.integers(0, CANVAS, 2)
    part = scenes[..., start[0] :, start[1] :][..., : int(np.ceil(size / scale)), : int(np.ceil(size / scale))]
    return F.interpolate(part, size=(size, size), mode="bicubic", align_corners=False)[0].clamp(-1, 1)


def texture(rng: np.random.Generator, size: int) -> Tensor:
    """Noise of a few scales on a gradient, as clouds, walls and cloth have it."""
    image = smooth(rng, size, channels=3, cells=2) * 0.5
    for cells in (4, 16, size // 16):
        image = image + smooth(rng, size, int(rng.choice((1, 3))), max(cells, 2)) * rng.uniform(0, 0.25)
    return image


def smooth(rng: np.random.Generator, size: int, channels: int, cells: int) -> Tensor:
    """Noise [channels, size, size] of deviation about 1 that is smooth from cell to cell."""
    noise = torch.from_numpy(rng.standard_normal((1, channels, cells, cells), np.float32))
    return F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)[0]
