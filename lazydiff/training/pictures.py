"""A grid of held-out samples, to look at while a model trains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.pictures import from_array, grid
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.edit import edit
from ..scenes import random_sample

# Called as paint(model, image, mask, prompt, seed) -> [1, 3, H, W]
Paint = Callable[[LazyDiffusion, Tensor, Tensor, str, int], Tensor]


def paint_lazy(model: LazyDiffusion, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
    return edit(model, image, mask, prompt, [seed])


def sample_grid(
    model: LazyDiffusion, seed: int, paint: Paint = paint_lazy, columns: int = 8, rows: int = 4
) -> Image.Image:
    """Pairs of canvas with its hole, and the model's answer, each with its caption."""
    rng = np.random.default_rng(seed)
    cells = []
    for i in range(columns * rows // 2):
        sample = random_sample(rng)
        image, mask = from_array(sample.image), torch.from_numpy(sample.mask)[None, None].float()
        masked = torch.where(mask > 0, torch.full_like(image, 0.5), image)
        cells += [(masked[0], ""), (paint(model, image, mask, sample.caption, i)[0], sample.caption)]
    return grid(cells, columns)
