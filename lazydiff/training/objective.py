"""The training objective: one encoding of each example, several noise levels, the loss on hole tokens.

All that is left to chance is drawn from each example's own seed, so that a loss does not depend on what else is in the
batch, or on who computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..core.tokens import HoleTokens, patchify
from ..data.batch import Batch
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.fit import crop_all
from ..sampling.flow import draw_sigmas, flow_loss, predict_clean
from ..sampling.iddpm import TIMESTEPS, iddpm_loss
from .config import TrainingConfig

Generators = list[torch.Generator]  # one for each example


class Canvases(NamedTuple):
    """Latents [B, C, h, w] of pictures and of what may be seen of them, and masks [B, 1, H, W] of zeros and ones."""

    latent: Tensor
    visible: Tensor
    mask: Tensor


class Objective(nn.Module):
    """Batch -> loss; a module of its own so that a distributed wrapper sees every parameter used in one forward."""

    def __init__(self, model: LazyDiffusion, config: TrainingConfig):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Batch, step: int) -> Tensor:
        model, network, levels = self.model, self.model.config.network, self.config.noise_levels
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        dropped = [float(torch.rand((), generator=each)) < self.config.drop_text for each in generators]
        latent, visible, mask = self.canvases(batch, generators)
        hole = HoleTokens.from_mask(mask, network.token)
        counted = hole.valid
        if network.dense:  # everything is computed, and judged where there is a hole
            counted = hole.cells(1).flatten(1)
            hole = HoleTokens.everything(len(mask), hole.grid, mask.device)
        noise = draw_noise(generators, levels, hole.counts, network.channels * network.patch**2)
        # As many rows as a batch has, each with a hole of its own, are attended to sooner with masks than row by row.
        hole = hole.keep_padding()

        context = model.context_of(visible, mask, hole).repeat_interleave(levels, 0)
        text = model.prompt(prompts(batch, dropped)).repeat(levels)
        clean = hole.gather(patchify(latent, network.patch)).repeat_interleave(levels, 0)
        noise, level = noise.to(clean.device), self.noise_levels(generators).to(clean.device)
        hole, counted = hole.repeat(levels), counted.repeat_interleave(levels, 0)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return model.decoder(x, t, text, hole, context)

        if model.config.prediction == "iddpm":
            return iddpm_loss(predict, clean, noise, level, counted)
        # A few channels hold nearly all of what is seen, the flat colours. Counted alike they are learned last.
        variance = model.variance
        weighed = step >= self.config.weigh_variance_from
        weight = variance / variance.mean() if weighed else torch.ones_like(variance)
        estimate = partial(predict_clean, predict, variance=variance, prediction=model.config.prediction)
        return flow_loss(estimate, clean, noise, level, variance, counted, weight)

    def canvases(self, batch: Batch, generators: Generators) -> Canvases:
        """What the examples look like to the model: from their latents, of which the picture's is drawn from the VAE's
        posterior, or from their pictures."""
        device, mask = self.model.device, batch.mask.to(self.model.device).float()
        if batch.latents is not None:
            mean, deviation, visible = batch.latents.to(device).float().unbind(1)
            noise = torch.stack([torch.randn(mean.shape[1:], generator=each) for each in generators])
            return Canvases(mean + deviation * noise.to(device), visible, mask)
        assert batch.image is not None
        image = batch.image.to(device).float() / 127.5 - 1
        if self.config.crop:
            image, mask = crop_all(image, mask, self.model.config.network.canvas)
        latent = self.model.latent
        return Canvases(latent.encode(image), latent.encode(image * (1 - mask)), mask)

    def noise_levels(self, generators: Generators) -> Tensor:
        """[B·levels]: σ of the flow path, or time steps."""
        config, levels = self.config, self.config.noise_levels
        if config.model.prediction == "iddpm":
            return torch.cat([torch.randint(TIMESTEPS, (levels,), generator=each) for each in generators])
        spread = -config.noise_mean, config.noise_deviation
        return torch.cat([draw_sigmas(1, levels, *spread, each) for each in generators])


def prompts(batch: Batch, dropped: Sequence[bool]) -> Sequence[Any]:
    """What the model's text encoder takes of each example: its caption, or the features that were prepared of it."""
    given, empty = (batch.captions, [""] * len(dropped)) if batch.text is None else (batch.text, batch.empty)
    assert empty is not None
    return [nothing if drop else text for text, nothing, drop in zip(given, empty, dropped, strict=True)]


def draw_noise(generators: Generators, levels: int, tokens: tuple[int, ...] | None, channels: int) -> Tensor:
    """[B·levels, n, channels], for the given number of tokens in each example; 0 at the padding."""
    assert tokens is not None
    rows = [torch.randn(n, levels, channels, generator=each) for each, n in zip(generators, tokens, strict=True)]
    return pad_sequence(rows, batch_first=True).transpose(1, 2).flatten(0, 1)
