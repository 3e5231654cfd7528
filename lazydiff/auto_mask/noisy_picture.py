"""A picture made partly noisy, to be denoised as if all of it were a hole: the model knows it and a prompt, no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.masks import guided_filter
from ..core.tokens import unpatchify
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.encode import check_canvas, encode
from ..pipeline.fit import Fit
from ..sampling.denoiser import lazy_denoiser
from ..sampling.noise import CanvasNoise
from ..sampling.samplers import Denoiser
from .evidence import Evidence
from .maps import normalise, resize

REACH = 0.75  # of a token: how far edges of the picture attract the mask's


class Found(NamedTuple):
    mask: Tensor  # [1, 1, H, W] of zeros and ones
    heat: Tensor  # [1, 1, H, W] in 0…1


class NoisyPicture:
    """A picture that a model is to denoise without knowing it otherwise, once for each seed."""

    def __init__(self, model: LazyDiffusion, image: Tensor, seeds: Sequence[int], strength: float):
        if not 0 < strength <= 1:
            raise ValueError(f"strength is above 0 and at most 1, not {strength}")
        if not seeds:
            raise ValueError("there is no seed: give at least one")
        check_canvas(image, torch.ones(len(image), 1, *image.shape[2:]), model.config.network.token)
        self.home, image = image.device, image.to(model.device).float()
        everything = torch.ones_like(image[:, :1])
        self.fit = Fit.whole(image, model.config.network.canvas)
        self.image, _ = self.fit.to_model(image, everything)
        self.model, self.seeds = model, seeds
        self.context = encode(model, self.image, torch.ones_like(self.image[:, :1]))
        self.grid = self.context.hole.grid
        self.picture = self.cells(self.context.canvas)
        noise = CanvasNoise(seeds, self.context.hole.tile(len(seeds)), self.context.canvas.shape[-1])
        self.start = (1 - strength) * self.context.canvas + strength * noise.next()

    def denoiser(self, prompt: str, guidance: float = 1) -> Denoiser:
        return lazy_denoiser(self.model, self.context, [prompt] * len(self.seeds), guidance)

    def cells(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, C·p·p] -> latent [B, C, h·p, w·p], its channels as important as they are large in pictures."""
        return unpatchify(tokens * self.model.variance.sqrt(), self.grid, self.model.config.network.patch)

    def finish(self, heat: Tensor, evidence: Evidence | None, edges: bool) -> Tensor:
        """Heat map [h, w] -> [1, 1, H, W] of the size of the picture, and where that was."""
        size = (self.image.shape[-2], self.image.shape[-1])
        heat = resize(heat[None], size)
        if evidence is not None:
            # The root: errors are squares, and latents are compared by their differences.
            heat = normalise(heat * evidence.weight(self.grid, size).sqrt())
        heat = heat[None]
        if edges:
            heat = guided_filter(heat, self.image, round(REACH * self.model.config.network.token))
        return self.fit.from_model(heat).to(self.home)


def noise_levels(strength: float, steps: int) -> list[float]:
    """Noise levels from a strength down to 0, of so many steps."""
    if steps < 1:
        raise ValueError(f"{steps} steps: choose at least 1")
    return [strength * (1 - i / steps) for i in range(steps + 1)]
