"""Difference masks: where a picture changes when its prompt does.

FISEdit (Yu et al. 2024): two denoisings begin with the same noise, one with the source prompt and one with the target
prompt; where they drift apart in the first steps is what the change of words touches. DiffEdit (Couairon et al. 2023),
beside which masks are measured, compares single noise estimates of a noisy picture instead.

    DifferenceMap            FISEdit's, fed step by step
    prompt_difference_mask   all of it, with a model of ours
    diffedit_heat            DiffEdit's
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.lazydiffusion import LazyDiffusion
from ..sampling.samplers import euler_step
from .attention_mask import words_of
from .evidence import Evidence
from .maps import channels, normalise
from .noisy_picture import Found, NoisyPicture, noise_levels
from .prompt_to_prompt import Stabiliser, shared_tokens, stabilised

BINS = 256  # of Otsu's method, those of an 8-bit picture
NEGLIGIBLE = 1e-3  # of the latent's mean magnitude: what two precisions or batch sizes make of the same prompt
EXTREME = 3.0  # times the mean, above which DiffEdit's differences count no more
DIFFEDIT_THRESHOLD = 0.5


class DifferenceMap:
    """Where two denoisings differ, over the steps seen so far.

    Source: FISEdit's released code, which takes the first 10 of 50 steps.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.largest = 0.0  # difference as a share of the latent's magnitude

    def add(self, edited: Tensor, original: Tensor) -> None:
        """Latents [B, C, ..., h, w] of both after the same step; rows are seeds."""
        difference, magnitude = (channels(x.float()) for x in (edited - original, original))
        self.largest = max(self.largest, float(difference.max() / magnitude.mean().clamp(min=1e-12)))
        step = normalise(difference).mean(0)
        self.total = step if self.total is None else self.total + step

    @property
    def differs(self) -> bool:
        """Whether there was any difference beyond round-off."""
        return self.largest > NEGLIGIBLE

    def heat(self) -> Tensor:
        """[h, w] in 0…1; 0 where nothing differs.

        Errors: ValueError when no step was added.
        """
        if self.total is None:
            raise ValueError("no step was compared: choose at least one step")
        return normalise(self.total) if self.differs else torch.zeros_like(self.total)


def difference_mask(heat: Tensor) -> Tensor:
    """Heat map [h, w] in 0…1 -> mask of zeros and ones, by Otsu's threshold and an opening; empty without contrast."""
    if heat.min() == heat.max():
        return torch.zeros_like(heat)
    return opening((heat > otsu(heat)).float())


def otsu(heat: Tensor) -> float:
    """The threshold in 0…1 that parts values best in two classes: the variance between them is largest.

    heat: any shape, in 0…1. Values above the threshold are of the upper class. Of equally good thresholds the lowest.
    Source: Otsu 1979, on a histogram of 8 bits.
    """
    level = (heat.flatten() * (BINS - 1)).round().long()
    count = torch.bincount(level, minlength=BINS).double()
    lower, moment = count.cumsum(0), (count * torch.arange(BINS, device=heat.device)).cumsum(0)
    upper = lower[-1] - lower
    # The variance between the classes times n⁴, of whole numbers alone, so that equally good thresholds are equal.
    between = (lower[-1] * moment - lower * moment[-1]).square() / (lower * upper).clamp(min=1)
    best = int((between == between.max()).nonzero()[0])
    return (best + 0.5) / (BINS - 1)


def opening(mask: Tensor) -> Tensor:
    """What squares of 2×2 inside a mask [h, w] cover: specks and hairs are gone, nothing has moved."""
    eroded = 1 - F.max_pool2d(1 - mask[None], 2, stride=1)
    return F.max_pool2d(F.pad(eroded, (1, 1, 1, 1)), 2, stride=1)[0]


def diffedit_heat(target: Tensor, source: Tensor) -> Tensor:
    """DiffEdit's map [h, w] in 0…1, whose mask is above `DIFFEDIT_THRESHOLD`.

    target, source: [S, C, ..., h, w] noise estimates for both prompts (or without one) of a picture with S seeds' noise
    Source: DiffEdit, section 3.2; extremes are cut off as in diffusers' implementation.
    """
    difference = channels((target - source).float()).mean(0)
    most = (EXTREME * difference.mean()).clamp(min=torch.finfo(difference.dtype).tiny)
    return (difference / most).clamp(max=1)


class DifferenceSettings(NamedTuple):
    """How a mask is looked for.

    seeds, strength, steps, evidence, edges: as for attention masks; first: the steps that are made and compared
    stabilise: let words that both prompts have attend as they do in the source's
    """

    seeds: Sequence[int] = (0, 1, 2)
    strength: float = 0.5
    steps: int = 10
    first: int = 1
    evidence: bool = True
    edges: bool = True
    stabilise: bool = False


@torch.no_grad()
def prompt_difference_mask(
    model: LazyDiffusion,
    image: Tensor,
    source: str,
    target: str,
    settings: DifferenceSettings = DifferenceSettings(),  # noqa: B008
) -> Found:
    """Where a picture changes when the prompt that tells of it, `source`, becomes `target`; empty if nothing would.

    image: [1, 3, H, W] in 0…1, of any size
    Each step calls the decoder for both prompts.
    Errors: ValueError that says what is wrong with the input.
    Source: FISEdit (Yu et al. 2024); `Evidence` and `guided_filter` are not part of it.
    """
    seeds, strength, steps, first, evidence, edges, stabilise = settings
    if not 1 <= first <= steps:
        raise ValueError(f"{first} of {steps} steps cannot be compared: choose 1 to {steps}")
    noisy = NoisyPicture(model, image, seeds, strength)
    differences, gained = DifferenceMap(), Evidence()
    prompts = [noisy.denoiser(prompt) for prompt in (source, target)]
    if stabilise:
        shared = shared_tokens(*(words_of(model.text.split(prompt)) for prompt in (source, target)))
        prompts = stabilised(model.decoder, prompts, Stabiliser(shared))
    latents = [noisy.start, noisy.start]
    for sigma, lower in list(pairwise(noise_levels(strength, steps)))[:first]:
        clean = [prompt(z, sigma) for prompt, z in zip(prompts, latents, strict=True)]
        latents = [euler_step(z, x, sigma, lower) for z, x in zip(latents, clean, strict=True)]
        differences.add(*(noisy.cells(z) for z in reversed(latents)))
        gained.add(noisy.picture, *(noisy.cells(x) for x in clean))
    heat = noisy.finish(differences.heat(), gained if evidence else None, edges)
    return Found(difference_mask(heat[0, 0])[None, None], heat)
