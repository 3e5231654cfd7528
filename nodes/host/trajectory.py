"""The latents that a sampling goes through: recorded while a user's sampler runs, or made for a while."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

KEY = "lazydiffusion_record"
KEPT = 2  # samplings that a recorder remembers, the last ones
FIRST = 32  # of whose steps it keeps so many


class Start(NamedTuple):
    """What a sampling begins with: with another prompt, the same picture begins to change from here."""

    noise: Tensor
    latent: Tensor
    sampler: Any
    sigmas: Tensor
    seed: int | None


class Recorded(NamedTuple):
    start: Start
    steps: list[Tensor]  # latents after the first step, the second …
    result: Tensor


class Enough(Exception):
    """All the steps that were wanted have been made."""


def follow(model: Any, start: Start, cfg: float, positive: Any, negative: Any, steps: int) -> list[Tensor]:
    """Latents [B, C, ..., h, w] after each of the first steps.

    steps: fewer than the sampling has
    """
    preview, latents = latent_preview.prepare_callback(model, steps + 1), []

    def collect(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        preview(step, denoised, x, total)
        if step > 0:
            latents.append(x.detach().cpu().clone())
        if step == steps:
            raise Enough

    try:
        comfy.sample.sample_custom(
            model, start.noise, cfg, start.sampler, start.sigmas, positive, negative, start.latent, None, collect,
            seed=start.seed,
        )  # fmt: skip
    except Enough:
        pass
    return latents


class Recorder:
    """Keeps what the samplings of a MODEL go through, for those who compare other prompts with them."""

    def __init__(self) -> None:
        self.runs: deque[Recorded] = deque(maxlen=KEPT)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return self  # the host copies a MODEL's options

    def attach(self, model: Any) -> Any:
        """A clone of the MODEL that is recorded."""
        model = model.clone()
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.sampling)
        return model

    def sampling(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Tensor | None = None,
        callback: Any = None, disable_pbar: bool = False, seed: int | None = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Around a sampling."""
        latents: list[Tensor] = []

        def collect(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            if 0 < step <= FIRST:
                latents.append(x.detach().cpu().clone())
            if callback is not None:
                callback(step, denoised, x, total)

        out = executor(noise, latent, sampler, sigmas, mask, collect, disable_pbar, seed, *args, **kwargs)
        if mask is None:
            self.runs.append(Recorded(Start(noise, latent, sampler, sigmas, seed), latents, out))
        return out

    def find(self, result: Tensor) -> Recorded | None:
        """The sampling that a latent came out of."""
        for run in reversed(self.runs):
            if run.result.shape == result.shape and torch.equal(run.result.to(result), result):
                return run
        return None


def recorder_of(model: Any) -> Recorder | None:
    """The recorder that a MODEL came through."""
    wrappers = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return wrappers[0].__self__ if wrappers else None
