"""Attention masks of the host's MODELs: found by a partial denoising, or while a sampler runs."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import latent_preview
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...lazydiff.auto_mask.attention_mask import AttentionMaps, Thresholds, point_at
from ...lazydiff.auto_mask.evidence import Evidence
from ...lazydiff.auto_mask.maps import normalise, resize
from .attention_maps import AttentionObserver
from .encode import check_latent, encode_each, sizes_of
from .model import LazyModel
from .words import Prompt, read_prompt

KEY = "lazydiffusion_instant"
SAMPLER, SCHEDULER = "lms", "normal"  # of InstDiffEdit
HEAT = torch.tensor([1.0, 0.25, 0.1])  # colour of a heat map where it is hottest
SIDE = 64  # cells of a map's shorter side, at the least: the published blur is of so many


class SearchSettings(NamedTuple):
    """How words are told apart.

    words: those to point at, separated by commas or spaces; none: found by the reference
    reference: one of the library's, or "automatic"
    thresholds: of the object's words, of the background's, of the mask
    evidence: weigh the heat map by how much better the prompt explains the picture than the negative one
    """

    words: str
    reference: str
    thresholds: tuple[float, float, float]
    evidence: bool = False


class PartialDenoising(NamedTuple):
    """A picture is made noisy by `strength` and denoised for that share of the steps, with several seeds at once."""

    seed: int
    seeds: int
    steps: int
    strength: float
    cfg: float


class MaskSearch:
    """What a MODEL attends to when it is given a prompt, and the mask that this makes.

    Errors: ValueError for a word that is not in the prompt, and for a model whose attention is not known.
    """

    def __init__(self, model: Any, prompt: Prompt, settings: SearchSettings):
        reference = settings.reference
        if reference == "automatic":
            reference = "start" if prompt.start else "sink"
        elif reference == "start" and not prompt.start:
            raise ValueError("this model's text encoder has no start token: choose another reference")
        self.model, self.prompt, self.reference = model.model, prompt, reference
        self.thresholds = Thresholds(*settings.thresholds)
        self.objects = point_at(prompt.words, settings.words)
        self.observer = AttentionObserver(model, prompt.places, prompt.length, self.add)
        self.maps: AttentionMaps | None = None
        self.evidence = Evidence() if settings.evidence else None
        self.picture: Tensor | None = None  # as samplers see it

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskSearch:
        return self  # the host copies a MODEL's options

    def attach(self, model: Any) -> Any:
        """A clone of the MODEL that is observed."""
        model = self.observer.attach(model)
        if self.reference == "difference" or self.evidence:  # with the negative prompt whatever the cfg is
            model.set_model_sampler_post_cfg_function(self.compare, disable_cfg1_optimization=True)
        return model

    def begin(self, size: tuple[int, ...]) -> None:
        """Forget what was seen; size: height and width of the heat map."""
        self.evidence = self.evidence and Evidence()
        spans = [word.tokens for word in self.prompt.words]
        self.maps = AttentionMaps(spans, (size[0], size[1]), self.reference, self.thresholds, self.objects)

    def add(self, maps: Tensor) -> None:
        if self.maps is not None:
            self.maps.add(maps)

    def compare(self, given: dict[str, Any]) -> Tensor:
        """The host calls this with what it has guided."""
        if self.maps is not None and given["uncond"] is not None:
            estimates = [self.weigh(given[f"{name}_denoised"]) for name in ("cond", "uncond")]
            self.maps.add_difference(*estimates)
            if self.evidence is not None and self.picture is not None:
                self.evidence.add(self.weigh(self.picture).to(estimates[0]), *estimates)
        return given["denoised"]

    def weigh(self, latent: Tensor) -> Tensor:
        """Channels as important as they are large in pictures, where that is known."""
        if not isinstance(self.model, LazyModel):
            return latent
        return latent * self.model.settings.variance.sqrt().to(latent)[:, None, None]

    @property
    def seen(self) -> AttentionMaps | None:
        """The maps, when there is any attention in them."""
        return self.maps if self.maps is not None and self.maps.attention.count else None

    def heat(self) -> Tensor:
        """[H, W] in 0…1. Errors: ValueError when no attention was seen."""
        seen = self.seen
        if seen is None:
            raise ValueError(
                "the model never computed the whole picture, so that no attention was seen: connect the MODEL as it is "
                "before Lazy Context Apply"
            )
        return seen.heat()

    def find(self, model: Any, latent: Tensor, negative: Any, partial: PartialDenoising) -> Tensor:
        """Heat map [H, W] of a picture's latent [1, C, ..., h, w], of its size, or a multiple of a small one's.

        Source: InstDiffEdit, section 3.
        """
        seed, seeds, steps, strength, cfg = partial
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
        self.begin(noise.shape[-2:])
        mask = torch.ones_like(noise) if mask is None else mask
        out = executor(guider, sigmas, extra, callback, noise, latent, mask, *args, **kwargs)
        if self.seen is None:
            logging.warning("Lazy Diffusion: no mask was found, because no step computed the whole picture")
        return out

    def narrow(self, sigma: Tensor, mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """The latent's noise mask where the object is, of what the steps so far have shown."""
        if self.others is not None:
            mask = self.others(sigma, mask, extra_options=extra_options)
        seen = self.seen
        return mask if seen is None else mask * seen.mask().to(mask)


def finer(height: int, width: int) -> tuple[int, int]:
    """Sides of a heat map for a latent of those sides: the same, or a multiple of a small one's."""
    times = max(1, round(SIDE / min(height, width)))
    return times * height, times * width


# What the nodes do


def find_attention_masks(
    parts: tuple[Any, Any, Any], image: Tensor, prompt: str, settings: SearchSettings, negative: Any, **partial: Any
) -> tuple[Tensor, Tensor]:
    """Masks [B, H, W] of pictures [B, H, W, 3], and the pictures with their heat maps.

    parts: MODEL, CLIP, VAE; negative: a CONDITIONING, or None for the empty prompt; partial: of `PartialDenoising`
    """
    model, clip, vae = parts
    if negative is None:
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    search = MaskSearch(model, read_prompt(clip, prompt), settings)
    heats = []
    for latent in latents_of(model, vae, image):
        heat = search.find(model, latent, negative, PartialDenoising(**partial))
        heats.append(resize(heat[None], (image.shape[1], image.shape[2])))
    heat = torch.cat(heats)
    return (heat > search.thresholds.mask).float(), heat_picture(heat, image[..., :3])


def attach_instant_mask(model: Any, clip: Any, prompt: str, settings: SearchSettings) -> tuple[Any, Any]:
    """A MODEL whose samplers find their mask, and the prompt's CONDITIONING."""
    read = read_prompt(clip, prompt)
    return MaskSearch(model, read, settings).attach_instantly(model), read.conditioning


def latents_of(model: Any, vae: Any, image: Tensor) -> list[Tensor]:
    """Each image [B, H, W, 3] as a latent [1, C, ..., h, w]; sides are scaled to whole tokens.

    Errors: ValueError for images that are no numbers, and for a VAE of another model.
    """
    if not torch.isfinite(image).all():
        raise ValueError("the image has values that are not numbers: the step before failed")
    token, cell, channels = sizes_of(model)
    size = [max(round(side / token), 1) * token for side in image.shape[1:3]]
    pixels = image[..., :3].movedim(-1, 1)
    if list(image.shape[1:3]) != size:
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    latents = encode_each(vae, pixels.movedim(1, -1))
    check_latent(latents, channels, size[0] // cell, size[1] // cell)
    return list(latents.split(1))


def heat_picture(heat: Tensor, image: Tensor | None = None) -> Tensor:
    """Heat maps [B, H, W] in 0…1 as pictures [B, H, W, 3], over images or over black."""
    image = heat.new_zeros(*heat.shape, 3) if image is None else image.to(heat)
    opacity = heat[..., None] * 0.8
    return image * (1 - opacity) + HEAT.to(heat) * opacity
