"""From a canvas, a mask and a prompt to edited canvases: encode once, sample hole tokens, decode, blend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .anchors import Anchors
from .context import LazyContext
from .crop import Crop
from .denoisers import denoiser, noise_levels
from .diffusion.noise import CanvasNoise
from .diffusion.samplers import SAMPLERS, Callback, Sampler, ancestral
from .gates import Decisions
from .masks import binarise, pad_to_multiple, to_grid
from .model import LazyDiffusion, Sampling
from .poisson import poisson_blend
from .tokens import HoleTokens, patchify, unpatchify
from .vae.vaes import to_pixels

Blend = Literal["poisson", "mixed", "paste"]


@torch.no_grad()
def edit(
    model: LazyDiffusion,
    image: Tensor,
    mask: Tensor,
    prompt: str,
    seeds: Sequence[int] = (0,),
    sampling: Sampling | None = None,
    negative: str = "",
    sketch: Tensor | None = None,
    strength: float = 0.8,
    blend: Blend = "poisson",
    callback: Callback | None = None,
    gates: Decisions | None = None,
) -> Tensor:
    """Variations [S, 3, H, W] of a canvas, one per seed; every pixel outside the mask is bit-identical to the input's.

    image: [1, 3, H, W] in 0…1, of any size (see `Fit`); mask: [1, 1, H, W] in 0…1, above 0.5 = hole
    sampling: the model's own settings if not given
    sketch: [1, 3, H, W] colours to start from inside the mask, changed by `strength` (0…1)
    callback: called as callback(done, total, x̂) after each step; what it raises ends the edit
    gates: see `sample`
    Errors: ValueError that says what is wrong with the input. An empty mask returns the input without running anything.
    """
    check_canvas(image, mask, model.config.network.token)
    if sketch is not None and sketch.shape != image.shape:
        raise ValueError(f"the sketch is {size_text(sketch)} and the canvas {size_text(image)}: they must be equal")
    mask = binarise(mask)
    if not mask.any():
        return image.repeat(len(seeds), 1, 1, 1)
    there, back = way(model, image, mask)
    context = encode(model, *there(image, mask))
    sketch = None if sketch is None else there(sketch, mask)[0]
    tokens = sample(
        model, context, [prompt] * len(seeds), seeds, sampling, negative, sketch, strength, callback, gates=gates
    )
    return composite(image, back(decode(model, context, tokens)), mask, blend)


@torch.no_grad()
def encode(model: LazyDiffusion, image: Tensor, mask: Tensor) -> LazyContext:
    """Encode canvases and their holes into a context; the only pass over the whole canvas.

    image: [B, 3, H, W] in 0…1; mask: [B, 1, H, W] of zeros and ones; both of whole tokens
    """
    image = image * 2 - 1
    return encode_latents(model, model.latent.encode(image * (1 - mask)), model.latent.encode(image), mask)


@torch.no_grad()
def encode_latents(model: LazyDiffusion, visible: Tensor, latent: Tensor, mask: Tensor) -> LazyContext:
    """The same from latents [B, C, h, w] of the canvases, and of them with mid grey in their holes (visible)."""
    hole = told = HoleTokens.from_grid_mask(to_grid(mask, model.config.network.token)[:, 0] > 0)
    if model.config.network.dense:
        told = HoleTokens.everything(len(mask), hole.grid, mask.device)
    canvas = patchify(latent, model.config.network.patch)
    return LazyContext(model.fingerprint, hole, model.encoder(visible, mask, told), canvas, model.config.network)


@torch.no_grad()
def sample(
    model: LazyDiffusion,
    context: LazyContext,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    negative: str = "",
    sketch: Tensor | None = None,
    strength: float = 0.8,
    callback: Callback | None = None,
    anchors: Anchors | None = None,
    gates: Decisions | None = None,
) -> Tensor:
    """Clean hole tokens [S, n, C·p·p], one row for each prompt with its seed; the context is only read.

    A context of one canvas serves any number of rows; one of B canvases serves its rows in turn (S a multiple of B).
    anchors: for models that compute every token, what was and will be kept of this context's visible ones, whatever
        the prompts and seeds; without it every step computes everything
    gates: for models that compute hole tokens alone, what decides which modules are computed; it counts them
    Errors: ValueError for a context that another model made, anchors of another context, gates of another model or of
    other steps, or settings that cannot be.
    """
    if context.model != model.fingerprint:
        raise ValueError("this context was made by another model: encode the canvas again with this one")
    sampling = sampling or model.config.sampling
    check_sampling(sampling)
    rows = len(seeds)
    hole = context.hole.tile(rows // len(context.tokens))
    noise = CanvasNoise(seeds, hole, context.canvas.shape[-1])
    start = None
    if sketch is not None:
        start = hole.gather(model.tokens(sketch * 2 - 1).expand(rows, -1, -1))
    sampler = sampler_of(sampling)
    levels = partial(noise_levels, sampler, sampling.steps, None if sketch is None else strength)
    run = gating = None
    if anchors is not None:
        check_anchors(model, context, anchors)
        run = anchors.run(levels())
    if gates is not None:
        check_gates(model)
        gating = gates.run(model.fingerprint, levels())
    denoise = denoiser(model, context, prompts, seeds, sampling.guidance, negative, run, gating)
    try:
        tokens = sampler(denoise, noise, sampling.steps, start, strength, callback)
    finally:
        if gating is not None:
            gating.clear()
    if run is not None:
        run.finish()
    return tokens


def sampler_of(sampling: Sampling) -> Sampler:
    """The sampler with its settings."""
    sampler = SAMPLERS[sampling.sampler]
    if sampler is ancestral:
        return partial(ancestral, temperature=sampling.temperature, shift=sampling.shift)
    return sampler


@torch.no_grad()
def decode(model: LazyDiffusion, context: LazyContext, tokens: Tensor) -> Tensor:
    """Hole tokens [S, n, C·p·p] among the canvas's own -> images [S, 3, H, W] in 0…1."""
    return to_pixels(model.latent.decode(to_latents(context, tokens)))


def to_latents(context: LazyContext, tokens: Tensor) -> Tensor:
    """Hole tokens [S, n, C·p·p] among the canvas's own (paper, equation 5) -> latents [S, C, h, w]."""
    times = len(tokens) // len(context.tokens)
    canvas = context.hole.tile(times).scatter(tokens, context.canvas.repeat(times, 1, 1))
    return unpatchify(canvas, context.hole.grid, context.network.patch)


def composite(image: Tensor, generated: Tensor, mask: Tensor, blend: Blend = "poisson") -> Tensor:
    """Generated pixels [S, 3, H, W] inside the mask, the canvas's own outside it, bit for bit."""
    if blend not in get_args(Blend):
        raise ValueError(f"there is no blend called {blend}: choose {', '.join(get_args(Blend))}")
    image, mask = image.expand_as(generated), mask.expand(len(generated), -1, -1, -1)
    if blend != "paste":
        generated = poisson_blend(image, generated, mask, "mixed" if blend == "mixed" else "source").clamp(0, 1)
    return torch.where(mask > 0, generated, image)


def way(model: LazyDiffusion, image: Tensor, mask: Tensor) -> tuple[Callable[..., Any], Callable[[Tensor], Tensor]]:
    """How a canvas and its mask go through a model of one size, and how what it made comes back."""
    side = model.config.network.canvas
    if model.config.network.crop:
        crop = Crop.around(mask)
        return partial(crop.view, side=side), partial(crop.back, canvas=image)
    fit = Fit.of(image, side)
    return fit.canvas, fit.back


@dataclass(frozen=True)
class Fit:
    """How a canvas of any size goes through a model of one size.

    The canvas is scaled until its longer side fits, and filled up to a square by repeating its right or lower edge,
    which counts as visible. What the model makes is scaled back and blended into the canvas at full size, so that
    everything outside the mask stays as it was and only the hole has the model's resolution.
    """

    height: int
    width: int
    side: int

    @classmethod
    def of(cls, image: Tensor, side: int) -> Fit:
        return cls(image.shape[-2], image.shape[-1], side)

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the scaled canvas."""
        scale = self.side / max(self.height, self.width)
        return max(round(self.height * scale), 1), max(round(self.width * scale), 1)

    def canvas(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image and mask as the model takes them; any hole pixel makes a hole."""
        if self.inner != (self.height, self.width):
            image = F.interpolate(image, self.inner, mode="bicubic", antialias=True).clamp(0, 1)
            mask = F.adaptive_max_pool2d(mask, self.inner)
        return pad_to_multiple(image, mask, self.side)

    def back(self, image: Tensor) -> Tensor:
        image = image[..., : self.inner[0], : self.inner[1]]
        if self.inner == (self.height, self.width):
            return image
        return F.interpolate(image, (self.height, self.width), mode="bicubic", antialias=True).clamp(0, 1)


# Bad input, told in the user's words


def size_text(image: Tensor) -> str:
    return f"{image.shape[-1]}×{image.shape[-2]}"


def check_canvas(image: Tensor, mask: Tensor, token: int) -> None:
    """Errors: ValueError unless `image` is one RGB canvas in 0…1 and `mask` a mask of its size in 0…1."""
    if image.ndim != 4 or image.shape[1] != 3 or len(image) != 1:
        raise ValueError(f"the image must be one RGB picture, [1, 3, height, width], and is {list(image.shape)}")
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"the mask must have one channel, [1, 1, height, width], and is {list(mask.shape)}")
    if min(image.shape[-2:]) < token:
        raise ValueError(f"the canvas is {size_text(image)}: it must be at least one token, {token}×{token} pixels")
    if image.shape[-2:] != mask.shape[-2:]:
        raise ValueError(f"the mask is {size_text(mask)} and the image {size_text(image)}: make them the same size")
    for name, values in (("image", image), ("mask", mask)):
        if not torch.isfinite(values).all():
            raise ValueError(f"the {name} has values that are not numbers (NaN or infinite)")
        if values.min() < 0 or values.max() > 1:
            raise ValueError(f"the {name} has values from {values.min():.3g} to {values.max():.3g}, not within 0…1")


def check_anchors(model: LazyDiffusion, context: LazyContext, anchors: Anchors) -> None:
    """Errors: ValueError for a model that has no use for anchors, or anchors that were left on another context."""
    if not model.config.network.dense:
        raise ValueError("anchors are for models that compute every token: this one computes the hole's alone")
    if anchors.canvas is not None and anchors.canvas is not context.canvas:
        raise ValueError("these anchors were left on another context: begin new ones for this one")
    anchors.canvas = context.canvas


def check_gates(model: LazyDiffusion) -> None:
    """Errors: ValueError for a model whose steps compute more than the hole."""
    if model.config.network.dense:
        raise ValueError("gates are for models that compute hole tokens alone: this one has anchors for its steps")


def check_sampling(sampling: Sampling) -> None:
    """Errors: ValueError for a sampler that does not exist or settings out of range."""
    if sampling.sampler not in SAMPLERS:
        raise ValueError(f"there is no sampler called {sampling.sampler}: choose {', '.join(SAMPLERS)}")
    if not 1 <= sampling.steps <= 1000:
        raise ValueError(f"{sampling.steps} steps: choose 1 to 1000")
    if not 0 <= sampling.guidance <= 50:
        raise ValueError(f"guidance {sampling.guidance}: choose 0 to 50")
