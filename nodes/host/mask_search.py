"""Attention masks of the host's MODELs: found by a partial denoising, or while a sampler runs."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...lazydiff.auto_mask.attention_mask import AttentionMaps, Thresholds, normalise, point_at
from ...lazydiff.auto_mask.evidence import Evidence
from .attention_maps import AttentionObserver
from .model import LazyModel
from .words import Prompt

KEY = "lazydiffusion_instant"
SAMPLER, SCHEDULER = "lms", "normal"  # of InstDiffEdit
SIDE = 64  # cells of a map's shorter side, at the least: the published blur is of so many


class MaskSearch:
    """What a MODEL attends to when it is given a prompt, and the mask that this makes.

    words: those to point at, separated by commas or spaces; none: found by the reference
    reference: one of the library's, or "automatic"
    evidence: weigh the heat map of `find` by how much better the prompt explains the picture than the negative one
    Errors: ValueError for a word that is not in the prompt, and for a model whose attention is not known.
    """

    def __init__(
        self, model: Any, prompt: Prompt, words: str, reference: str, thresholds: Thresholds, evidence: bool = False
    ):
        if reference == "automatic":
            reference = "start" if prompt.start else "sink"
        elif reference == "start" and not prompt.start:
            raise ValueError("this model's text encoder has no start token: choose another reference")
        self.model, self.prompt, self.reference, self.thresholds = model.model, prompt, reference, thresholds
        self.objects = point_at(prompt.words, words)
        self.observer = AttentionObserver(model, prompt.places, prompt.length, self.add)
        self.maps: AttentionMaps | None = None
        self.evidence = Evidence() if evidence else None
        self.picture: Tensor | None = None  # as samplers see it

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskSearch:
        return self  # the host copies a MODEL's options

    def attach(self, model: Any) -> Any:
        """A clone of the MODEL that is observed."""
        model = self.observer.attach(model)
        if self.reference == "difference" or self.evidence:  # with the negative prompt whatever the cfg is
            model.set_model_sampler_post_cfg_function(self.compare, disable_cfg1_optimization=True)
        return model

    def begin(self, size: tuple[int, int]) -> None:
        """Forget what was seen; size: height and width of the heat map."""
        self.evidence = self.evidence and Evidence()
        spans = [word.tokens for word in self.prompt.words]
        self.maps = AttentionMaps(spans, size, self.reference, self.thresholds, self.objects)  # type: ignore[arg-type]

    def add(self, maps: Tensor) -> None:
        if self.maps is not None:
            self.maps.add(maps)

    def compare(self, given: dict[str, Any]) -> Tensor:
        """The host calls this with what it has guided."""
        if self.maps is not None and given["uncond"] is not None:
            estimates = [self.weigh(given[f"{name}_denoised"]) for name in ("cond", "uncond")]
            self.maps.add_difference(*estimates)
            if self.evidence is not None:
                self.evidence.add(self.weigh(self.picture).to(estimates[0]), *estimates)
        return given["denoised"]

    def weigh(self, latent: Tensor) -> Tensor:
        """Channels as important as they are large in pictures, where that is known."""
        if not isinstance(self.model, LazyModel):
            return latent
        return latent * self.model.settings.variance.sqrt().to(latent)[:, None, None]

    @property
    def seen(self) -> bool:
        return self.maps is not None and self.maps.attention.count > 0

    def heat(self) -> Tensor:
        """[H, W] in 0…1. Errors: ValueError when no attention was seen."""
        if not self.seen:
            raise ValueError(
                "the model never computed the whole picture, so that no attention was seen: connect the MODEL as it is "
                "before Lazy Context Apply"
            )
        return self.maps.heat()

    def find(
        self, model: Any, latent: Tensor, negative: Any, seed: int, seeds: int, steps: int, strength: float, cfg: float
    ) -> Tensor:
        """Heat map [H, W] of a picture's latent [1, C, ..., h, w]: noised by `strength` and denoised for that share of
        the steps, with several seeds at once. It is of the latent's size, or a multiple of a small one's.

        Source: InstDiffEdit, section 3.
        """
        size = finer(*latent.shape[-2:])
        self.begin(size)
        self.picture = self.model.process_latent_in(latent)
        run = max(1, round(steps * strength))
        sigmas = comfy.samplers.KSampler(model, steps, "cpu", SAMPLER, SCHEDULER, 1.0).sigmas[-run - 1 :]
        noise = torch.cat([comfy.sample.prepare_noise(latent, (seed + row) % 2**64) for row in range(seeds)])
        preview = latent_preview.prepare_callback(model, run)

        def after_step(step: int, *of_latents: Any) -> None:
            if step == 0:
                self.heat()  # which words are the object is decided now
            preview(step, *of_latents)

        comfy.sample.sample_custom(
            self.attach(model), noise, cfg, comfy.samplers.sampler_object(SAMPLER), sigmas, self.prompt.conditioning,
            negative, latent.repeat(seeds, *[1] * (latent.ndim - 1)), None, after_step, seed=seed,
        )  # fmt: skip
        heat = self.heat()
        if self.evidence is not None:
            heat = normalise(heat * self.evidence.weight(self.observer.grid(latent), size).sqrt())
        return heat.to(mm.intermediate_device())

    # While a sampler runs

    def attach_instantly(self, model: Any) -> Any:
        """A clone of the MODEL whose samplers change what the mask covers, as far as it is found, and nothing else."""
        model = self.attach(model)
        model.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.sampling)
        self.others = model.model_options.get("denoise_mask_function")
        model.set_model_denoise_mask_function(self.narrow)
        return model

    def sampling(
        self, executor: Any, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor,
        latent: Tensor | None = None, mask: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """The host asks for the mask only where the latent has one."""
        self.begin(tuple(noise.shape[-2:]))
        mask = torch.ones_like(noise) if mask is None else mask
        out = executor(guider, sigmas, extra, callback, noise, latent, mask, *args, **kwargs)
        if not self.seen:
            logging.warning("Lazy Diffusion: no mask was found, because no step computed the whole picture")
        return out

    def narrow(self, sigma: Tensor, mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """The latent's noise mask where the object is, of what the steps so far have shown."""
        if self.others is not None:
            mask = self.others(sigma, mask, extra_options=extra_options)
        return mask * self.maps.mask().to(mask) if self.seen else mask


def finer(height: int, width: int) -> tuple[int, int]:
    """Sides of a heat map for a latent of those sides: the same, or a multiple of a small one's."""
    times = max(1, round(SIDE / min(height, width)))
    return times * height, times * width
