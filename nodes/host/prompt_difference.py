"""Prompt difference masks of the host's MODELs."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import torch
import torch.nn.functional as F
from torch import Tensor

from ...lazydiff.auto_mask.difference_mask import DifferenceMap, difference_mask
from ...lazydiff.auto_mask.maps import resize
from .architectures import downscale
from .mask_search import finer, heat_picture
from .progress import show
from .sampling import SamplerSettings
from .stabiliser import StabilisedPrompts
from .trajectory import Start, follow, recorder_of


class PromptPair(NamedTuple):
    """Conditionings of a picture's prompt and of the changed one; with a CLIP and both texts, words that are in both
    attend alike."""

    source: Any
    target: Any
    negative: Any
    clip: Any = None
    texts: tuple[str, str] = ("", "")

    def stabilised(self, model: Any) -> StabilisedPrompts | None:
        """Errors: ValueError for a CLIP without texts, or texts without one."""
        if self.clip is None and not any(self.texts):
            return None
        if self.clip is None or not all(text.strip() for text in self.texts):
            raise ValueError("the stabiliser needs clip, source_text and target_text: give all of them, or none")
        found = StabilisedPrompts(model, self.clip, self.source, self.target, self.texts)
        if not found.shared:
            show("The two prompts have no word in common: there is nothing to stabilise.")
        return found


def find_difference_mask(
    model: Any, prompts: PromptPair, latent: Tensor, settings: SamplerSettings, first: int
) -> tuple[Tensor, Tensor]:
    """Mask [1, H, W] of what the change of prompt touches, and its heat map as a picture [1, H, W, 3].

    first: how many steps are compared
    Source: FISEdit (Yu et al. 2024), section 3.
    """
    found = DifferenceMap()
    for edited, original in zip(*both_ways(model, prompts, latent, settings, first), strict=True):
        found.add(edited, original)
    if not found.differs:
        show("The two prompts make the same picture: the mask is empty. Change the target prompt.")
    heat = found.heat()[None].cpu()
    height, width = heat.shape[1:]
    mask = difference_mask(resize(heat, finer(height, width))[0])
    size = height * downscale(model), width * downscale(model)
    return F.interpolate(mask[None, None], size)[0], heat_picture(resize(heat, size))


def both_ways(
    model: Any, prompts: PromptPair, latent: Tensor, settings: SamplerSettings, first: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Latents after each of the first steps with the target prompt, and with the source prompt."""
    stabilised = prompts.stabilised(model)
    samples = comfy.sample.fix_empty_latent_channels(model, latent)
    recorder = recorder_of(model)
    recorded = recorder.find(samples) if recorder else None
    if recorded is not None and len(recorded.steps) < first:
        recorded = None
    seed, steps, cfg, sampler, scheduler, denoise = settings
    if recorded is not None:
        start = recorded.start
    else:
        sigmas = comfy.samplers.KSampler(model, steps, "cpu", sampler, scheduler, denoise).sigmas
        first = min(first, len(sigmas) - 2)
        if denoise >= 1:
            samples = torch.zeros_like(samples)
        noise = comfy.sample.prepare_noise(samples, seed)
        start = Start(noise, samples, comfy.samplers.sampler_object(sampler), sigmas, seed)
    if stabilised is not None:
        before, after = stabilised.follow(start, cfg, prompts.negative, first)
        return after, before
    after = follow(model, start, cfg, prompts.target, prompts.negative, first)
    if recorded is not None:
        return after, recorded.steps[:first]
    return after, follow(model, start, cfg, prompts.source, prompts.negative, first)
