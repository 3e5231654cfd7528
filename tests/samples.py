"""Samples of the world as tests take them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lazydiff.scenes import random_sample
from lazydiff.storyboard import from_array


def scene(number: int) -> tuple[Tensor, Tensor, str]:
    """Image [1, 3, 96, 96] in 0…1, mask [1, 1, 96, 96] and caption of a sample of the world."""
    sample = random_sample(np.random.default_rng([7, number]), "object")
    return from_array(sample.image), torch.from_numpy(sample.mask)[None, None].float(), sample.caption
