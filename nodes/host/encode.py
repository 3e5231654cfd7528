"""From a user's pictures and masks to contexts, with errors in the user's words."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from ...lazydiff.cache.kv_cache import KVSettings
from ...lazydiff.cache.kv_context import KVContext
from ...lazydiff.core.masks import binarise, feather, grow, to_grid
from ...lazydiff.model.context import LazyContext
from ...lazydiff.pipeline.canvas import Canvas, masked_latent
from ...lazydiff.pipeline.fit import Fit, Fitted, Zoom
from .architectures import downscale, token_size
from .device import on_load_device
from .kv_sampling import kv_context
from .model import LazyModel, model_name
from .progress import counted, show

Encoded = tuple[LazyContext | KVContext, dict[str, Tensor]]  # a context, and the canvas with its noise mask
BLACK = 2 / 255


def encode_context(
    model: Any, vae: Any, image: Tensor, mask: Tensor, edge: tuple[int, int], settings: KVSettings,
    zoom: Zoom | None = None,
) -> Encoded:  # fmt: skip
    """image: [B, H, W, 3]; mask: [B, H, W]; edge: pixels to grow and to feather the hole by; zoom: of stock models"""
    token, cell, channels = sizes_of(model)
    image, mask = canvas_and_mask(image, mask)
    if isinstance(model.model, LazyModel):
        return fitted_context(model.model, image, soften(mask, *edge), vae)
    fit = Fit.padded(mask, token)
    if zoom is not None:
        fit = Fit.zoomed(mask > 0.5, token, zoom, max(edge[0], 0) + edge[1])
    # From here on nothing is of the canvas's size: of a large photograph, time and memory are those of the region.
    soft = soften(fit.region.of(mask), *edge)
    pixels, inside = fit.to_model(fit.region.of(image.movedim(-1, 1)), soft, "replicate")
    latent = encode_image(vae, pixels.movedim(1, -1), cell, channels)
    encoded = stock_context(model, latent, inside, settings, vae)
    return finished(encoded, Fitted(fit, soft > 0), pixels, inside)


def encode_from_canvas(
    model: Any, canvas: Canvas, mask: Tensor, edge: tuple[int, int], settings: KVSettings
) -> Encoded:
    """The same from a canvas's own latents, of which only what the hole changes is encoded."""
    token, cell, channels = sizes_of(model)
    image, mask = canvas_and_mask(canvas.image.movedim(1, -1), mask)
    soft, vae = soften(mask, *edge), canvas.vae.host
    if isinstance(model.model, LazyModel) and not Fit.of(soft, model.model.network.canvas).trivial:
        return fitted_context(model.model, image, soft, vae)
    fit = canvas.fit
    if any(side % token for side in fit.outer):
        raise ValueError(f"this model's tokens are of {token} px, larger than a canvas is made for: use Lazy Context "
                         "Encode")  # fmt: skip
    latent = canvas.latent.expand(len(soft), *canvas.latent.shape[1:])
    check_latent(latent, channels, *(side // cell for side in fit.outer))
    if isinstance(model.model, LazyModel):
        encoded = learned_context(model.model, latent, masked_latent(canvas, (soft > 0).float()), soft, vae)
    else:
        encoded = stock_context(model, latent, fit.fill_up(soft), settings, vae)
    return finished(encoded, Fitted(fit, soft > 0), canvas.image, soft)


def fitted_context(lazy: LazyModel, image: Tensor, soft: Tensor, vae: Any) -> Encoded:
    """A context of pictures [B, H, W, 3] of any size: those of another than the model's are fitted, and the node says
    so. soft: [B, 1, H, W], holes with soft edges"""
    fit = Fit.of(soft, lazy.network.canvas)
    pixels, inside = fit.to_model(image.movedim(-1, 1), soft)
    hole = (inside > 0).float()
    latent, visible = (
        encode_image(vae, each.movedim(1, -1), lazy.network.cell, lazy.network.channels)
        for each in (pixels, pixels * (1 - hole) + hole / 2)
    )
    encoded = learned_context(lazy, latent, visible, inside, vae)
    return finished(encoded, Fitted(fit, fit.region.of(soft) > 0), pixels, inside)


def finished(encoded: Encoded, fitted: Fitted, pixels: Tensor, soft: Tensor) -> Encoded:
    """With what those need to know who put results back; what was done with a canvas of another size is told.

    pixels, soft: [B, 3, H, W] and [B, 1, H, W], of one size, what the model sees
    """
    context, latents = encoded
    context = context._replace(black=is_black(pixels, soft))
    if fitted.fit.trivial:
        return context, latents
    show(fit_text(fitted.fit))
    return context._replace(fitted=fitted), latents


def is_black(pixels: Tensor, soft: Tensor) -> bool:
    """Whether under the holes is nothing but black, some soft edge pixels aside."""
    hole = soft[:, 0] >= 1
    return bool(hole.any()) and float((pixels.amax(1).expand_as(hole)[hole] < BLACK).float().mean()) > 0.9


def fit_text(fit: Fit) -> str:
    """What was done with a canvas of another size, in words."""
    (height, width), region, (rows, columns) = fit.canvas, fit.region, fit.outer
    done = f"is filled up to whole tokens, {columns}×{rows} px"
    if fit.scaled:
        seen = f"through {region.width}×{region.height} px around the hole" if region[2:] != fit.canvas else "whole"
        done = f"is looked at {seen}, scaled to the model's {columns}×{rows} px"
    return (
        f"the picture of {width}×{height} px {done}; Lazy VAE Decode, or Poisson Blend with the context, gives it back "
        "at its own size"
    )


def learned_context(lazy: LazyModel, latent: Tensor, visible: Tensor, soft: Tensor, vae: Any) -> Encoded:
    """visible: latents of the canvas with grey in its holes; soft: [B, 1, H, W], holes with soft edges"""
    with counted(lazy.encoder.model.blocks, comfy.utils.ProgressBar(lazy.network.encoder_depth)):
        context = lazy.context(latent, visible, (soft > 0).float())._replace(vae=vae)
    return context, {"samples": latent, "noise_mask": noise_mask(soft, lazy.network.token, lazy.network.patch)}


def stock_context(model: Any, latent: Tensor, soft: Tensor, settings: KVSettings, vae: Any) -> Encoded:
    """A context that keeps keys and values while samplers run; soft: [B, 1, H, W], holes with soft edges"""
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    context = kv_context(model, latent, soft > 0, settings, vae)
    if not context.name:
        show(
            f"{model_name(model)} is of a kind that cannot be lazy: every step computes the whole canvas. "
            "Everything else works the same."
        )
    token = token_size(model)
    cells = noise_mask(soft, token, token // downscale(model))
    # Of as many dimensions as the latent: from fewer the host would take a batch of masks for the frames of one.
    return context, {"samples": latent, "noise_mask": cells.unsqueeze(2) if latent.ndim == 5 else cells}


def sizes_of(model: Any) -> tuple[int, int, int]:
    """Pixels per side of a token and of a latent cell, and the latents' channels, as a MODEL needs them."""
    if isinstance(model.model, LazyModel):
        network = model.model.network
        return network.token, network.cell, network.channels
    return token_size(model), downscale(model), model.model.latent_format.latent_channels


def canvas_and_mask(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, H, W, 3] and masks [B, 1, H, W] of one batch size; one of either serves all of the other.

    Errors: ValueError for sizes that do not go together, and for values that are no numbers.
    """
    image, mask = image[..., :3], mask.reshape(-1, 1, *mask.shape[-2:])
    height, width = image.shape[1:3]
    if mask.shape[-2:] != image.shape[1:3]:
        if not mask.any():  # what Load Image gives for a picture without a mask
            raise ValueError(
                "No mask painted: right-click Load Image → Open in MaskEditor, paint what is to be generated, save"
            )
        raise ValueError(
            f"the mask is {mask.shape[-1]}×{mask.shape[-2]} and the image {width}×{height}: make them the same size"
        )
    if not all(torch.isfinite(end) for each in (image, mask) for end in each.aminmax()):  # of all, without a copy
        raise ValueError("the image or the mask has values that are not numbers: the step before failed")
    if image.shape[-1] == 1:
        image = image.expand(-1, -1, -1, 3)
    if mask.max() <= 0.5:
        show(
            "the mask is empty: nothing is generated" if not mask.any() else
            f"the mask is nowhere above 0.5 (at most {float(mask.max()):.2f}): nothing is generated. Paint it "
            "opaque, or give it a threshold by Lazy Mask"
        )  # fmt: skip
    rows = max(len(image), len(mask))
    if {len(image), len(mask)} - {1, rows}:
        raise ValueError(f"there are {len(image)} images and {len(mask)} masks: give as many masks as images, or one")
    return image.expand(rows, -1, -1, -1), mask.expand(rows, -1, -1, -1)


def soften(mask: Tensor, pixels: int, edge: int) -> Tensor:
    """Mask [B, 1, H, W] of any softness -> 1 on the grown hole, falling to 0 around it."""
    return on_load_device(lambda mask: feather(grow(binarise(mask), pixels), edge), mask)


def noise_mask(soft: Tensor, token: int, patch: int) -> Tensor:
    """Mask [B, 1, H, W] in pixels -> latent cells [B, 1, h, w], alike within a token."""
    return to_grid(soft, token).repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def encode_image(vae: Any, image: Tensor, cell: int, channels: int) -> Tensor:
    """Latents [B, C, h, w], of some VAEs [B, C, 1, h, w]. Errors: ValueError for a VAE of another model."""
    latent = encode_each(vae, image)
    check_latent(latent, channels, image.shape[1] // cell, image.shape[2] // cell)
    return latent


def encode_each(vae: Any, images: Tensor) -> Tensor:
    """Latents of images [B, H, W, 3], one by one: a VAE of videos takes a batch for the frames of one."""
    return torch.cat([vae.encode(image) for image in images.split(1)])


def check_latent(latent: Tensor, channels: int, height: int, width: int) -> None:
    if (latent.shape[1], *latent.shape[-2:]) != (channels, height, width):
        raise ValueError(
            f"this VAE makes latents of {latent.shape[1]} channels, {latent.shape[-1]}×{latent.shape[-2]}; the model "
            f"needs {channels}, {width}×{height}: connect the VAE that belongs to the model"
        )
