"""The training objective: one encoding of each scene, several noise levels, the loss on hole tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.tokens import HoleTokens
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.fit import crop_all
from ..sampling.flow import draw_sigmas, flow_loss
from ..sampling.iddpm import TIMESTEPS, iddpm_loss
from .config import TrainingConfig
from .data import Batch


class Objective(nn.Module):
    """Batch -> loss; a module of its own so that a distributed wrapper sees every parameter used in one forward."""

    def __init__(self, model: LazyDiffusion, config: TrainingConfig):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Batch, generator: torch.Generator, step: int) -> Tensor:
        """generator: on the CPU, seeded by the step, so that a resumed run draws what the unbroken one would have."""
        model, levels = self.model, self.config.noise_levels
        device = model.device
        image = batch.image.to(device).float() / 127.5 - 1
        mask = batch.mask.to(device).float()
        network = model.config.network
        if self.config.crop:
            image, mask = crop_all(image, mask, network.canvas)
        # As many rows as a batch has, each with a hole of its own, are attended to sooner with masks than row by row.
        hole = HoleTokens.from_mask(mask, network.token).keep_padding()
        counted = hole.valid
        if network.dense:  # everything is computed, and judged where there is a hole
            counted = hole.cells(1).flatten(1)
            hole = HoleTokens.everything(len(mask), hole.grid, device)

        context = model.context(image, mask, hole).repeat_interleave(levels, 0)
        text = model.prompt(self._drop(batch.captions, generator)).repeat(levels)
        clean = hole.gather(model.tokens(image)).repeat_interleave(levels, 0)
        hole, counted = hole.repeat(levels), counted.repeat_interleave(levels, 0)
        noise = torch.randn(clean.shape, generator=generator).to(device)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return model.decoder(x, t, text, hole, context)

        if model.config.prediction == "iddpm":
            t = torch.randint(TIMESTEPS, (len(clean),), generator=generator).to(device)
            return iddpm_loss(predict, clean, noise, t, counted)
        config = self.config
        sigma = draw_sigmas(len(clean) // levels, levels, -config.noise_mean, config.noise_deviation, generator)
        # A few channels hold nearly all of what is seen, the flat colours. Counted alike they are learned last.
        variance = model.variance
        weight = variance / variance.mean() if step >= config.weigh_variance_from else torch.ones_like(variance)
        return flow_loss(predict, clean, noise, sigma.to(device), variance, counted, weight)

    def _drop(self, captions: Sequence[str], generator: torch.Generator) -> list[str]:
        keep = torch.rand(len(captions), generator=generator) >= self.config.drop_text
        return [caption if kept else "" for caption, kept in zip(captions, keep.tolist(), strict=True)]
