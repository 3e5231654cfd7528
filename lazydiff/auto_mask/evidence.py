"""Evidence: where a prompt explains a picture better than another prompt, or none, does.

A picture that is known is made noisy and estimated again with each; the one whose estimate is nearer has the evidence.
It tells the object that is named from others of its kind, which attention need not do: a model that fills holes looks
for "red" wherever a colour is missing. Source: the diffusion classifiers of Li et al. 2023 (2303.16203), cell by cell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import Mean, resize


class Evidence:
    """The mean over all noises and noise levels seen so far."""

    def __init__(self) -> None:
        self.error = Mean()

    def add(self, picture: Tensor, named: Tensor, other: Tensor) -> None:
        """All [B, C, ..., h, w]: the clean latent, and its estimates with the prompt and with the other or none."""
        gain = (other - picture).float().square() - (named - picture).float().square()
        self.error.add(gain.flatten(1, -3).sum(1))

    def weight(self, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """[*size] in 0…1, 0 where there is no evidence; averaged over 3×3 cells of `grid`, as one noise says little.

        Errors: ValueError when nothing was added.
        """
        if self.error.value is None:
            raise ValueError("no estimate was compared: choose at least one step")
        gain = F.adaptive_avg_pool2d(self.error.value[None], grid)
        gain = F.avg_pool2d(gain, 3, stride=1, padding=1, count_include_pad=False).clamp(min=0)
        return resize(gain / gain.max().clamp(min=torch.finfo(gain.dtype).tiny), size)[0]
