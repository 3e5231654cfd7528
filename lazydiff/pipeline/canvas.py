"""A canvas that stays in latents from edit to edit.

Pixels outside an edit's mask are those of the canvas before, bit for bit, and so are the latents; sampled latents are
kept as they are and never encoded again (those of a canvas that was fitted to a model of another size are). A canvas
carries its last decode, from which the next one goes on: the hundredth edit costs what the first did. A picture whose
sides are not whole is filled up for the VAE, by repeating its right and lower edge, and no one sees that.

    open_canvas     encode a picture once
    masked_latent   what a context encoder sees of it, with a hole
    encode_canvas   a context for a model of ours
    edit_canvas     sampled latents -> the next canvas
    edit_pixels     generated pixels -> the next canvas
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.masks import binarise
from ..model.context import LazyContext
from ..model.lazydiffusion import LazyDiffusion
from ..vae.canvas_vae import CanvasVAE, EarlierPass, work_share
from .decode import Blend, composite, composite_latents
from .encode import encode_latents, size_text
from .fit import Fit


class Canvas(NamedTuple):
    """Pictures being edited, in pixels and in latents; immutable, and shared rather than copied.

    It carries what a lazy VAE needs to go on from it, so that an edit's result is a function of its canvas alone.
    """

    vae: CanvasVAE
    image: Tensor  # [B, 3, H, W] in 0…1
    latent: Tensor  # [B, C, h, w], of some VAEs [B, C, 1, h, w], of the picture filled up
    encoded: tuple[EarlierPass, ...] = ()  # its encode, and its decode
    decoded: tuple[EarlierPass, ...] = ()
    planned: float | None = None  # share of a whole decode's work, of the last one (see `VAEOutput`)

    def __deepcopy__(self, memo: dict[int, Any]) -> Canvas:
        return self

    def row(self, i: int) -> Canvas:
        """One of its pictures, as a canvas of its own."""
        own = slice(i, i + 1)
        return Canvas(self.vae, self.image[own], self.latent[own], self.encoded[own], self.decoded[own], self.planned)

    @property
    def share(self) -> float:
        """Of the work of a whole decode, what the last one took."""
        return work_share(self.planned)

    @property
    def cell(self) -> int:
        """Pixels per side of a latent cell."""
        return self.vae.cell

    @property
    def fit(self) -> Fit:
        """How its pixels are filled up for its latents."""
        return fit_for(self.vae, self.image)


@torch.no_grad()
def open_canvas(vae: CanvasVAE, image: Tensor) -> Canvas:
    """Encode pictures [B, 3, H, W] in 0…1, once; a lazy VAE also decodes them, to have something to go on from."""
    encoded = vae.encode(fit_for(vae, image).fill_up(image))
    decoded = vae.decode(encoded.output).passes if vae.lazy else ()
    return Canvas(vae, image, encoded.output, encoded.passes, decoded)


def fit_for(vae: CanvasVAE, image: Tensor) -> Fit:
    """To whole tokens of any model that has such latents: of two cells, and of 16 px at least."""
    return Fit.padded(image, max(2 * vae.cell, 16))


@torch.no_grad()
def masked_latent(canvas: Canvas, mask: Tensor) -> Tensor:
    """Latents of the canvas with mid grey in the hole: what may be known of it. mask: [B or 1, 1, H, W], above 0.5"""
    check_mask(canvas, mask)
    hole = binarise(mask).to(canvas.image.device)
    return canvas.vae.encode(canvas.fit.fill_up(canvas.image * (1 - hole) + hole / 2), canvas.encoded).output


@torch.no_grad()
def encode_canvas(model: LazyDiffusion, canvas: Canvas, mask: Tensor) -> LazyContext:
    """A context of the canvas and its holes [B or 1, 1, H, W]; only what the holes change is encoded."""
    visible = masked_latent(canvas, mask)
    hole = canvas.fit.fill_up(binarise(mask)).expand(len(visible), 1, -1, -1)
    return encode_latents(model, visible, canvas.latent.expand_as(visible), hole)


@torch.no_grad()
def edit_canvas(canvas: Canvas, samples: Tensor, mask: Tensor, blend: Blend = "poisson") -> Canvas:
    """The canvas with sampled latents in its hole: in cells that the hole touches; decoded, blended, ready for more.

    samples: [S, C, h, w]; outside the hole's cells they do not count
    mask:    [M, 1, H, W], above 0.5 is hole
    One canvas and one hole give as many canvases as there are samples. One canvas and several holes, each with its own
    samples (hole by hole, and so again for each variation), give canvases with all the holes filled, where they overlap
    by the last. Several canvases take one sample each.
    Errors: ValueError for numbers or sizes that do not go together, and for samples that are no numbers.
    """
    if samples.shape[1:] != canvas.latent.shape[1:]:
        given, own = (f"{x.shape[1]} channels, {size_text(x)}" for x in (samples, canvas.latent))
        raise ValueError(f"the latents are of {given}, the canvas's of {own}: sample on this canvas")
    return _hole_by_hole(_fill, canvas, samples, mask, blend)


@torch.no_grad()
def edit_pixels(canvas: Canvas, generated: Tensor, mask: Tensor, blend: Blend = "poisson") -> Canvas:
    """The same from generated pixels [S, 3, H, W], from which the holes' latent cells are encoded."""
    return _hole_by_hole(_fill_pixels, canvas, generated, mask, blend)


def check_mask(canvas: Canvas, mask: Tensor) -> None:
    if mask.shape[-2:] != canvas.image.shape[-2:]:
        raise ValueError(f"the mask is {size_text(mask)} and the canvas {size_text(canvas.image)}: make the mask match")
    if len(canvas.image) > 1 and len(mask) not in (1, len(canvas.image)):
        raise ValueError(f"the canvas has {len(canvas.image)} pictures, and there are {len(mask)} masks: give as many, "
                         "or one")  # fmt: skip


def check_rows_of(canvas: Canvas, rows: int, mask: Tensor) -> None:
    """Errors: ValueError for numbers of samples, holes and pictures that do not go together."""
    check_mask(canvas, mask)
    pictures, holes = len(canvas.image), len(mask)
    if rows != pictures if pictures > 1 else rows % holes:
        raise ValueError(f"the canvas has {pictures} pictures and {holes} holes, and there are {rows} latents: sample "
                         "on this canvas, with as many variations for each hole")  # fmt: skip


def _hole_by_hole(
    fill: Callable[[Canvas, Tensor, Tensor, Blend], Canvas], canvas: Canvas, made: Tensor, mask: Tensor, blend: Blend
) -> Canvas:
    check_rows_of(canvas, len(made), mask)
    if not torch.isfinite(made).all():
        raise ValueError("the latents have values that are not numbers: the step before failed")
    if len(canvas.image) > 1:
        return fill(canvas, made, mask, blend)
    # One after the other: where two holes share a cell, the pixels of the first are decoded from its own latents.
    for i in range(len(mask)):
        canvas = fill(canvas, made[i :: len(mask)], mask[i : i + 1], blend)
    return canvas


def _fill_pixels(canvas: Canvas, generated: Tensor, mask: Tensor, blend: Blend) -> Canvas:
    hole = binarise(mask)
    image = composite(canvas.image, generated, hole, blend)
    encoded = canvas.vae.encode(canvas.fit.fill_up(image), canvas.encoded)
    latent = _in_hole(canvas, encoded.output, hole)
    return Canvas(canvas.vae, image, latent, encoded.passes, canvas.decoded)


def _fill(canvas: Canvas, samples: Tensor, mask: Tensor, blend: Blend) -> Canvas:
    hole, (height, width) = binarise(mask), canvas.image.shape[-2:]
    latent = _in_hole(canvas, samples, hole)
    decoded = canvas.vae.decode(latent, canvas.decoded)
    image = composite(canvas.image, decoded.output[..., :height, :width], hole, blend)
    # Encoded for what the next masked encode goes on from; the latents stay those that were sampled.
    encoded = canvas.vae.encode(canvas.fit.fill_up(image), canvas.encoded).passes if canvas.encoded else ()
    return Canvas(canvas.vae, image, latent, encoded, decoded.passes, decoded.planned)


def _in_hole(canvas: Canvas, latent: Tensor, hole: Tensor) -> Tensor:
    """The canvas's latents, with others in the cells that the hole touches; what continues it is hole too."""
    return composite_latents(canvas.latent, latent.to(canvas.latent), canvas.fit.fill_up(hole), canvas.cell)
