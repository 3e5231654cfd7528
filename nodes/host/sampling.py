"""One sampling of a context's hole, by the host's samplers or by the model's own."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ...lazydiff.cache.kv_context import KVContext
from ...lazydiff.core.tokens import HoleTokens, unpatchify
from ...lazydiff.core.transfer import to_device
from ...lazydiff.model.context import LazyContext
from ...lazydiff.pipeline.decode import composite_latents
from ...lazydiff.sampling.noise import CanvasNoise
from ...lazydiff.sampling.samplers import sample_ancestral
from .contexts import attach, encode_sketch, whole_canvas
from .model import lazy_model

BLACKED_OUT = (
    "Lazy Diffusion: denoise is below 1, and all that lies under the mask is black. Mask editors of front ends between "
    "1.47.3 and 1.48.6 black it out: update comfyui-frontend-package, or load the picture apart from its mask"
)
OnStep = Callable[[int, Tensor, Tensor, int], None]  # step, denoised latents as the model has them, noisy ones, steps
OWN = "ancestral (as trained)"  # the library's default, which no host sampler equals


class SamplerSettings(NamedTuple):
    """What the host's KSampler has too; sampler: one of the host's, or OWN."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float


def sample_context(
    model: Any, context: LazyContext | KVContext, prompts: tuple[Any, Any], settings: SamplerSettings,
    variations: int, sketch: Tensor | None, on_step: OnStep | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """A LATENT of so many variations, of seed, seed + 1 …

    prompts: positive and negative; sketch: [1 or B, H, W, 3], colours to start from; on_step: is told of each step
    instead of the host's own previews
    """
    model = attach(model, context)
    canvas, mask = whole_canvas(context)
    visible = canvas
    if not context.hole.count:  # nothing to generate
        return {"samples": canvas.repeat(variations, *[1] * (canvas.ndim - 1))}
    if context.black and sketch is None and settings.denoise < 1:
        logging.warning(BLACKED_OUT)
    if sketch is not None:
        canvas = torch.where(mask, encode_sketch(context, sketch), canvas)
    canvas, mask = (each.repeat(variations, *[1] * (each.ndim - 1)) for each in (canvas, mask.float()))
    seed, steps, cfg, name, scheduler, denoise = settings
    noise = HostNoise(canvas, seed) if isinstance(context, KVContext) else PlacedNoise(context, seed, len(canvas))
    if name == OWN and isinstance(context, LazyContext):
        sampler = own_sampler(model, noise)
    else:
        sampler = comfy.samplers.sampler_object("euler" if name == OWN else name)
    sigmas = comfy.samplers.KSampler(Schedules(model), steps, "cpu", name, scheduler, denoise).sigmas
    samples = comfy.sample.sample_custom(
        model, noise.next(), cfg, sampler, sigmas, *prompts, canvas, mask,
        on_step or latent_preview.prepare_callback(model, steps), seed=seed,
    )  # fmt: skip
    # A sketch may lie beside the mask in a token that the mask touches.
    visible = visible.repeat(variations, *[1] * (visible.ndim - 1))
    samples = composite_latents(visible, samples, context.mask, context.size[0] // samples.shape[-2])
    return {"samples": samples, "noise_mask": mask}


class Schedules:
    """A MODEL as the host's schedulers see it, with its table of noise levels in main memory: they read it number by
    number, and would wait for the device each time."""

    def __init__(self, model: Any):
        self.model = model

    def get_model_object(self, name: str) -> Any:
        return copy.deepcopy(self.model.get_model_object(name)).to("cpu")


class HostNoise:
    """The host's noise, as its own samplers draw it: row r has that of seed + r."""

    def __init__(self, latent: Tensor, seed: int):
        self.latent, self.seed = latent, seed

    def next(self) -> Tensor:
        """[B, C, h, w], of some models [B, C, 1, h, w]"""
        seeds = [(self.seed + row) % 2**64 for row in range(len(self.latent))]
        return torch.cat([comfy.sample.prepare_noise(self.latent[:1], seed) for seed in seeds])


class PlacedNoise:
    """The library's noise for whole canvases, so that a seed means here what it means there.

    Row r has the noise of seed + r, whatever the mask is and however many rows there are.
    """

    def __init__(self, context: LazyContext, seed: int, rows: int):
        self.grid, self.patch = context.hole.grid, context.network.patch
        seeds = [(seed + row) % 2**64 for row in range(rows)]
        self.noise = CanvasNoise(seeds, HoleTokens.everything(rows, self.grid), context.canvas.shape[-1])

    def next(self) -> Tensor:
        """[B, C, h, w]"""
        return unpatchify(self.noise.next(), self.grid, self.patch)


def own_sampler(model: Any, noise: HostNoise | PlacedNoise) -> comfy.samplers.KSAMPLER:
    """The library's `sample_ancestral` as a sampler of the host's.

    A flow model's noise levels are the same here and there. Of others the host counts sigma / alpha, and its tokens are
    the library's divided by alpha.
    """
    temperature = lazy_model(model).settings.config.sampling.temperature
    flow = lazy_model(model).settings.config.prediction != "iddpm"

    def sample(model: Any, z: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
        levels = sigmas.cpu()  # the loop must not wait for the device
        shares = (levels if flow else levels / (1 + levels)).unbind()
        given = dict(zip(shares, sigmas[:, None].expand(-1, len(z)), strict=True))

        def denoise(x: Tensor, share: Tensor) -> Tensor:
            return model(x if flow else x / (1 - share), given[share], **extra_args)

        def after_step(done: int, total: int, x0: Tensor) -> None:
            i = done - 1
            callback({"x": x0, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})

        z = z if flow else z * (1 - shares[0])
        def fresh_noise() -> Tensor:
            return to_device(noise.next(), z.device).to(z)

        return sample_ancestral(denoise, z, shares, fresh_noise, after_step, temperature)

    sample.once_a_step = True  # type: ignore[attr-defined]  # see `Steps`
    return comfy.samplers.KSAMPLER(sample)
