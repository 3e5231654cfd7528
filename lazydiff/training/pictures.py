"""A grid of held-out samples, to look at while a model trains."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..model import LazyDiffusion
from ..pipeline import edit
from ..scenes import random_sample
from ..storyboard import grid
from .data import collate


def sample_grid(model: LazyDiffusion, seed: int, columns: int = 8, rows: int = 4) -> Image.Image:
    """Pairs of canvas with its hole, and the model's answer, each with its caption."""
    rng = np.random.default_rng(seed)
    cells = []
    for i in range(columns * rows // 2):
        batch = collate([random_sample(rng)])
        image, mask = batch.image.float() / 255, batch.mask.float()
        masked = torch.where(mask > 0, torch.full_like(image, 0.5), image)
        cells += [(masked[0], ""), (edit(model, image, mask, batch.captions[0], [i])[0], batch.captions[0])]
    return grid(cells, columns)
