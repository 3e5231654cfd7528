"""Encoding: the only pass over the whole canvas, and what it takes for bad input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.checks import Range, shortened
from ..core.tokens import HoleTokens, patchify
from ..model.context import LazyContext
from ..model.lazydiffusion import LazyDiffusion

SEEDS = Range(0, 2**64 - 1, whole=True)


@torch.no_grad()
def encode(model: LazyDiffusion, image: Tensor, mask: Tensor) -> LazyContext:
    """Encode canvases and their holes into a context.

    image: [B, 3, H, W] in 0…1; mask: [B, 1, H, W] of zeros and ones; both of whole tokens, on any device
    Errors: ValueError for a model that computes every token, unless every token is hole; for sizes that do not go
    together or are not of whole tokens.
    """
    token = model.config.network.token
    if len(image) != len(mask) or image.shape[-2:] != mask.shape[-2:] or any(side % token for side in image.shape[-2:]):
        raise ValueError(
            f"{len(image)} images of {size_text(image)} and {len(mask)} masks of {size_text(mask)}: give as many of "
            f"each, of one size, whose sides are multiples of {token} (`edit` takes pictures of any size)"
        )
    image, mask = image.to(model.device).float() * 2 - 1, mask.to(model.device)
    return encode_latents(model, model.latent.encode(image * (1 - mask)), model.latent.encode(image), mask)


@torch.no_grad()
def encode_latents(model: LazyDiffusion, visible: Tensor, latent: Tensor, mask: Tensor) -> LazyContext:
    """The same from latents [B, C, h, w] of the canvases, and of them with mid grey in their holes (visible)."""
    network = model.config.network
    hole = HoleTokens.from_mask(mask, network.token).to(model.device)
    if network.dense and hole.count < hole.total:
        raise ValueError("this checkpoint computes every token: it is a baseline of the evaluation, and edits nothing")
    visible, latent, mask = (each.to(model.device) for each in (visible, latent, mask))
    canvas, tokens = patchify(latent.float(), network.patch), model.context_of(visible, mask, hole)
    return LazyContext(model.fingerprint, hole, tokens, canvas, mask > 0, network)


# Bad input, told in the user's words


def check_rows(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Errors: ValueError unless there is one prompt for each seed, and each can be used."""
    if not len(seeds):
        raise ValueError("there is no seed: give at least one")
    if isinstance(prompts, str) or len(prompts) != len(seeds):
        raise ValueError(f"there are {len(prompts)} prompts and {len(seeds)} seeds: give one prompt for each seed")
    for seed in seeds:
        if not SEEDS.has(seed):
            raise ValueError(f"the seed {shortened(seed)} cannot be used: choose a whole number from 0 to 2⁶⁴ − 1")
    for prompt in prompts:
        check_text(prompt)


def check_text(prompt: str) -> None:
    """Errors: ValueError for what is no text in Unicode."""
    try:
        prompt.encode()
    except (AttributeError, UnicodeEncodeError):
        raise ValueError(f"the prompt {shortened(ascii(prompt))} is no text in Unicode: type it in UTF-8") from None


def size_text(image: Tensor) -> str:
    return f"{image.shape[-1]}×{image.shape[-2]}"


def check_canvas(image: Tensor, mask: Tensor, token: int) -> None:
    """Errors: ValueError unless `image` is one RGB canvas in 0…1 and `mask` a mask of its size in 0…1."""
    if image.ndim != 4 or image.shape[1] != 3 or len(image) != 1:
        raise ValueError(f"the image must be one RGB picture, [1, 3, height, width], and is {list(image.shape)}")
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"the mask must have one channel, [1, 1, height, width], and is {list(mask.shape)}")
    if len(mask) != 1:
        raise ValueError(f"there are {len(mask)} masks for one image: edit with each in turn")
    if not image.is_floating_point():
        raise ValueError(f"the image is of type {image.dtype}: divide 8-bit values by 255, as floating point")
    if mask.is_complex():
        raise ValueError(f"the mask is of type {mask.dtype}: it must be of values from 0 to 1")
    if min(image.shape[-2:]) < token:
        raise ValueError(f"the canvas is {size_text(image)}: it must be at least one token, {token}×{token} pixels")
    if image.shape[-2:] != mask.shape[-2:]:
        raise ValueError(f"the mask is {size_text(mask)} and the image {size_text(image)}: make them the same size")
    check_values("image", image)
    check_values("mask", mask)


def check_values(name: str, values: Tensor) -> None:
    """Errors: ValueError for values that are no numbers, or not within 0…1."""
    if not torch.isfinite(values).all():
        raise ValueError(f"the {name} has values that are not numbers (NaN or infinite)")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"the {name} has values from {values.min():.3g} to {values.max():.3g}, not within 0…1")
