"""Masks that our own models find: what a prompt speaks of, and what a change of the prompt touches.

The picture is made partly noisy and denoised as if all of it were a hole, so that the noisy picture and the prompt are
all that the model knows. What its cross-attention (InstDiffEdit) or the drift between two prompts (FISEdit) shows is
weighed by the prompts' evidence and led to the edges of the picture; without these two it is the published method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..denoisers import denoiser
from ..diffusion.noise import CanvasNoise
from ..diffusion.samplers import Denoiser
from ..masks import guided_filter
from ..model import LazyDiffusion
from ..networks.decoder import LazyDecoder
from ..networks.layers import AttentionFunction, CrossAttention, attention_maps
from ..pipeline import check_canvas, encode, way
from ..tokens import unpatchify
from .attention_masks import AttentionMaps, Reference, Thresholds, normalise, point_at, resize, words_of
from .difference_masks import DifferenceMap, difference_mask
from .evidence import Evidence
from .stabiliser import Stabiliser, shared_tokens

FOUND = Thresholds(mask=0.55)  # on scenes that are neither trained nor tested on, with evidence and edges
FINE = 4  # cells of a heat map per token and side, as in InstDiffEdit: attention of 16×16 makes masks of 64×64
REACH = 0.75  # of a token: how far edges of the picture attract the mask's


class Found(NamedTuple):
    mask: Tensor  # [1, 1, H, W] of zeros and ones
    heat: Tensor  # [1, 1, H, W] in 0…1


@torch.no_grad()
def attention_mask(
    model: LazyDiffusion,
    image: Tensor,
    prompt: str,
    words: str = "",
    seeds: Sequence[int] = (0, 1, 2),
    strength: float = 0.5,
    steps: int = 1,
    reference: Reference = "sink",
    thresholds: Thresholds = FOUND,
    evidence: bool = True,
    edges: bool = True,
) -> Found:
    """Where a picture shows what a prompt speaks of.

    image: [1, 3, H, W] in 0…1, of any size
    words: those of the prompt that are the object, separated by commas or spaces; found by `reference` if not given
    seeds, strength, steps: noises, their share (0…1) at the first step, and steps from there to the picture
    Each step calls the decoder for the prompt, and once more for evidence or the reference “difference”.
    Errors: ValueError that says what is wrong with the input.
    Source: InstDiffEdit (Zou et al. 2024), section 3; `Evidence` and `guided_filter` are not part of it.
    """
    spoken = words_of(model.text.split(prompt))
    noisy = NoisyPicture(model, image, seeds, strength)
    grid, size = noisy.grid, (noisy.grid[0] * FINE, noisy.grid[1] * FINE)
    maps = AttentionMaps([word.tokens for word in spoken], size, reference, thresholds, point_at(spoken, words))
    gained = Evidence()
    named, unnamed = noisy.denoiser(prompt), noisy.denoiser("")
    z = noisy.start
    for sigma, lower in pairwise(levels(strength, steps)):
        with watched(model.decoder, lambda attention: maps.add(attention.unflatten(2, grid))):
            clean = named(z, 1 - sigma, sigma)
        if evidence or reference == "difference":
            other = unnamed(z, 1 - sigma, sigma)
            maps.add_difference(noisy.cells(clean), noisy.cells(other))
            gained.add(noisy.picture, noisy.cells(clean), noisy.cells(other))
        z = euler_step(z, clean, sigma, lower)
    heat = noisy.finish(maps.heat(), gained if evidence else None, edges)
    return Found((heat > thresholds.mask).float(), heat)


@torch.no_grad()
def prompt_difference_mask(
    model: LazyDiffusion,
    image: Tensor,
    source: str,
    target: str,
    seeds: Sequence[int] = (0, 1, 2),
    strength: float = 0.5,
    steps: int = 10,
    first: int = 1,
    evidence: bool = True,
    edges: bool = True,
    stabilise: bool = False,
) -> Found:
    """Where a picture changes when the prompt that tells of it, `source`, becomes `target`; empty if nothing would.

    image, seeds, strength, steps: as for `attention_mask`; first: the steps that are made and compared
    stabilise: let words that both prompts have attend as they do in the source's
    Each step calls the decoder for both prompts.
    Errors: ValueError that says what is wrong with the input.
    Source: FISEdit (Yu et al. 2024), section 3; `Evidence` and `guided_filter` are not part of it.
    """
    if not 1 <= first <= steps:
        raise ValueError(f"{first} of {steps} steps cannot be compared: choose 1 to {steps}")
    noisy = NoisyPicture(model, image, seeds, strength)
    differences, gained = DifferenceMap(), Evidence()
    prompts = [noisy.denoiser(prompt) for prompt in (source, target)]
    if stabilise:
        shared = shared_tokens(*(words_of(model.text.split(prompt)) for prompt in (source, target)))
        prompts = stabilised(model.decoder, prompts, Stabiliser(shared))
    latents = [noisy.start, noisy.start]
    for sigma, lower in list(pairwise(levels(strength, steps)))[:first]:
        clean = [prompt(z, 1 - sigma, sigma) for prompt, z in zip(prompts, latents, strict=True)]
        latents = [euler_step(z, x, sigma, lower) for z, x in zip(latents, clean, strict=True)]
        differences.add(*(noisy.cells(z) for z in reversed(latents)))
        gained.add(noisy.picture, *(noisy.cells(x) for x in clean))
    heat = noisy.finish(differences.heat(), gained if evidence else None, edges)
    return Found(difference_mask(heat[0, 0])[None, None], heat)


class NoisyPicture:
    """A picture that a model is to denoise without knowing it otherwise, once for each seed."""

    def __init__(self, model: LazyDiffusion, image: Tensor, seeds: Sequence[int], strength: float):
        if not 0 < strength <= 1:
            raise ValueError(f"strength is above 0 and at most 1, not {strength}")
        if not seeds:
            raise ValueError("there is no seed: give at least one")
        everything = torch.ones_like(image[:, :1])
        check_canvas(image, everything, model.config.network.token)
        there, self.back = way(model, image, everything)
        self.image, _ = there(image, everything)
        self.model, self.seeds = model, seeds
        self.context = encode(model, self.image, torch.ones_like(self.image[:, :1]))
        self.grid = self.context.hole.grid
        self.picture = self.cells(self.context.canvas)
        noise = CanvasNoise(seeds, self.context.hole.tile(len(seeds)), self.context.canvas.shape[-1])
        self.start = (1 - strength) * self.context.canvas + strength * noise.next()

    def denoiser(self, prompt: str) -> Denoiser:
        return denoiser(self.model, self.context, [prompt] * len(self.seeds), self.seeds, guidance=1)

    def cells(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, C·p·p] -> latent [B, C, h·p, w·p], its channels as important as they are large in pictures."""
        return unpatchify(tokens * self.model.variance.sqrt(), self.grid, self.model.config.network.patch)

    def finish(self, heat: Tensor, evidence: Evidence | None, edges: bool) -> Tensor:
        """Heat map [h, w] -> [1, 1, H, W] of the size of the picture."""
        size = (self.image.shape[-2], self.image.shape[-1])
        heat = resize(heat[None], size)
        if evidence is not None:
            # The root: errors are squares, and latents are compared by their differences.
            heat = normalise(heat * evidence.weight(self.grid, size).sqrt())
        heat = heat[None]
        if edges:
            heat = guided_filter(heat, self.image, round(REACH * self.model.config.network.token))
        return self.back(heat)


def levels(strength: float, steps: int) -> list[float]:
    """Noise levels from a strength down to 0, of so many steps."""
    if steps < 1:
        raise ValueError(f"{steps} steps: choose at least 1")
    return [strength * (1 - i / steps) for i in range(steps + 1)]


def euler_step(z: Tensor, clean: Tensor, sigma: float, lower: float) -> Tensor:
    """From z = (1 − σ)·x + σ·ε to a lower noise level by the estimate of x."""
    return (1 - lower) * clean + lower * (z - (1 - sigma) * clean) / sigma


@contextmanager
def watched(decoder: LazyDecoder, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see` with the attention [B, heads, n, L] of tokens to text in every block; what the decoder returns stays
    the same, bit for bit."""

    def hook(module: CrossAttention, args: tuple[Any, ...]) -> None:
        x, (keys, _), mask = args[:3]  # and how x is packed, which a batch of whole canvases is not
        see(attention_maps(module.queries(x), keys, mask))

    handles = [block.cross_attn.register_forward_pre_hook(hook) for block in decoder.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stabilised(decoder: LazyDecoder, prompts: Sequence[Denoiser], stabiliser: Stabiliser) -> list[Denoiser]:
    """Denoisers of a source and a target prompt, to be called in turn, with a stabiliser's attention to the text."""

    def bound(denoise: Denoiser, attention: AttentionFunction) -> Denoiser:
        def predict(z: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor | None]:
            with attending(decoder, attention):
                return denoise.predict(z, alpha, sigma)

        return Denoiser(predict)

    pairs = zip(prompts, (stabiliser.source, stabiliser.target), strict=True)
    return [bound(denoise, attention) for denoise, attention in pairs]


@contextmanager
def attending(decoder: LazyDecoder, attention: AttentionFunction) -> Iterator[None]:
    """Let every block attend to the text by another function."""
    modules = [block.cross_attn for block in decoder.blocks]
    usual = [module.attention for module in modules]
    for module in modules:
        module.attention = attention
    try:
        yield
    finally:
        for module, function in zip(modules, usual, strict=True):
            module.attention = function
