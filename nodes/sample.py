"""Sampling."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io
from torch import Tensor
from tqdm.auto import trange

from ..lazydiff.cache.kv_context import KVContext
from ..lazydiff.core.tokens import HoleTokens, unpatchify
from ..lazydiff.model.context import LazyContext
from ..lazydiff.sampling.noise import CanvasNoise
from .host.contexts import attach, encode_each
from .host.model import lazy_model
from .types import CATEGORY, LazyContextIO

OWN = "ancestral (as trained)"  # the library's default, which no host sampler equals


class LazySample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazySample",
            display_name="Lazy Sample",
            category=CATEGORY,
            description="Generates the hole of a context; everything else stays as it is, bit by bit. Change the seed "
            "or the prompt as often as you like: the canvas is not encoded again.",
            inputs=[
                io.Model.Input("model", tooltip="The model that made the context."),
                LazyContextIO.Input("context", tooltip="From Lazy Context Encode; one serves many samplers."),
                io.Conditioning.Input("positive", tooltip="What to put into the hole."),
                io.Conditioning.Input("negative", tooltip="What to stay away from; not used at cfg 1."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise to begin with. It belongs to places of the canvas: another mask, same noise.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="More steps, finer and slower."),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strongly the prompt is followed. 1: the small model as trained, Flux; twice as fast.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=[OWN, *comfy.samplers.KSampler.SAMPLERS],
                    default=OWN,
                    tooltip="The model's own sampler (of a stock model: euler), or any of the host's.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="How the steps lie between noise and picture.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1 = from noise alone; less keeps more of the sketch, or of what lies under the mask.",
                ),
                io.Int.Input(
                    "variations", default=1, min=1, max=64, tooltip="Pictures to make: of seed, seed + 1, seed + 2 …"
                ),
                io.Image.Input(
                    "sketch",
                    optional=True,
                    tooltip="Colours to start from in the hole, of the canvas's size; use denoise below 1.",
                ),
            ],
            outputs=[io.Latent.Output("LATENT", tooltip="For VAE Decode; then blend with Poisson Blend.")],
        )

    @classmethod
    def execute(
        cls, model: Any, context: LazyContext | KVContext, positive: Any, negative: Any, seed: int, steps: int,
        cfg: float, sampler: str, scheduler: str, denoise: float, variations: int, sketch: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        model = attach(model, context)
        canvas, mask = whole_canvas(context)
        if not context.hole.count:  # nothing to generate
            return io.NodeOutput({"samples": canvas.repeat(variations, *[1] * (canvas.ndim - 1))})
        if sketch is not None:
            canvas = torch.where(mask, encode_sketch(context, sketch), canvas)
        canvas, mask = (each.repeat(variations, *[1] * (each.ndim - 1)) for each in (canvas, mask.float()))
        placed = HostNoise(canvas, seed) if isinstance(context, KVContext) else PlacedNoise(context, seed, len(canvas))
        if sampler == OWN and isinstance(context, LazyContext):
            chosen = ancestral(model, placed)
        else:
            chosen = comfy.samplers.sampler_object("euler" if sampler == OWN else sampler)
        sigmas = comfy.samplers.KSampler(model, steps, "cpu", sampler, scheduler, denoise).sigmas
        samples = comfy.sample.sample_custom(
            model, placed.next(), cfg, chosen, sigmas, positive, negative, canvas, mask,
            latent_preview.prepare_callback(model, steps), seed=seed,
        )  # fmt: skip
        return io.NodeOutput({"samples": samples, "noise_mask": mask})


def whole_canvas(context: LazyContext | KVContext) -> tuple[Tensor, Tensor]:
    """Latents of the canvases and a mask bool of the cells that are to be generated, of as many dimensions."""
    if isinstance(context, LazyContext):
        canvas = unpatchify(context.canvas, context.hole.grid, context.network.patch)
        return canvas, context.hole.cells(context.network.patch)
    canvas = context.canvas
    mask = context.hole.cells(canvas.shape[-1] // context.hole.grid[1])
    return canvas, mask.unsqueeze(2) if canvas.ndim == 5 else mask


def encode_sketch(context: LazyContext | KVContext, sketch: Tensor) -> Tensor:
    """Latents of sketches, in the context's own latent space. Errors: ValueError for a sketch of another size."""
    height, width = context.size
    if sketch.shape[1:3] != context.size:
        size = f"{sketch.shape[2]}×{sketch.shape[1]}"
        raise ValueError(f"the sketch is {size} and the canvas {width}×{height}: make them the same size")
    if len(sketch) not in (1, len(context.canvas)):
        raise ValueError(f"there are {len(sketch)} sketches for {len(context.canvas)} canvases: give one, or one each")
    return encode_each(context.space, sketch[..., :3])


class HostNoise:
    """The host's noise, as its own samplers draw it: row r has that of seed + r."""

    def __init__(self, latent: Tensor, seed: int):
        self.latent, self.seed = latent, seed

    def next(self) -> Tensor:
        seeds = [(self.seed + row) % 2**64 for row in range(len(self.latent))]
        return torch.cat([comfy.sample.prepare_noise(self.latent[:1], seed) for seed in seeds])


class PlacedNoise:
    """The library's noise for whole canvases, so that a seed means here what it means there.

    Row r has the noise of seed + r, whatever the mask is and however many rows there are.
    """

    def __init__(self, context: LazyContext, seed: int, rows: int):
        self.grid, self.patch = context.hole.grid, context.network.patch
        everywhere = HoleTokens.from_grid_mask(torch.ones(rows, *self.grid, dtype=torch.bool))
        seeds = [(seed + row) % 2**64 for row in range(rows)]
        self.noise = CanvasNoise(seeds, everywhere, context.canvas.shape[-1])

    def next(self) -> Tensor:
        """[B, C, h, w]"""
        return unpatchify(self.noise.next(), self.grid, self.patch)


def ancestral(model: Any, noise: PlacedNoise) -> comfy.samplers.KSAMPLER:
    """The library's sampler `ancestral` on the host's noise levels: each step replaces all noise by fresh noise."""
    sampling = model.get_model_object("model_sampling")
    temperature = lazy_model(model).settings.config.sampling.temperature

    def sample(denoise: Any, z: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
        for i in trange(len(sigmas) - 1, disable=disable):
            x0 = denoise(z, sigmas[i].expand(len(z)), **extra_args)
            callback({"x": z, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})
            z = x0
            if sigmas[i + 1] > 0:
                z = sampling.noise_scaling(sigmas[i + 1], temperature * noise.next().to(x0), x0)
        return z

    return comfy.samplers.KSAMPLER(sample)
