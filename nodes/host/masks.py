"""Masks and canvases of the host's, before anything is encoded."""

from __future__ import annotations

from torch import Tensor

from ...lazydiff.core.masks import binarise, fill_islands
from ...lazydiff.pipeline.encode import size_text
from ...lazydiff.pipeline.outpaint import Margins, outpaint
from .device import on_load_device


def clean_mask(mask: Tensor, threshold: float, islands: bool) -> Tensor:
    """Masks [B, H, W] of any softness -> of zeros and ones; islands: those that are enclosed are filled"""
    hole = binarise(mask.reshape(-1, 1, *mask.shape[-2:]), threshold)
    return (on_load_device(fill_islands, hole) if islands else hole)[:, 0]


def extend(image: Tensor, mask: Tensor | None, sides: tuple[int, int, int, int], overlap: int) -> tuple[Tensor, Tensor]:
    """Pictures [B, H, W, C] with margins (left, top, right, bottom), and masks [B, H, W] of what is to be generated."""
    if mask is None or not mask.any():  # Load Image has one of 64 px for a picture without
        mask = image.new_zeros(1, *image.shape[1:3])
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2:] != image.shape[1:3]:
        size = f"{image.shape[2]}×{image.shape[1]}"
        raise ValueError(f"the mask is {size_text(mask)} and the image {size}: make them the same size")
    canvas, hole = outpaint(image.movedim(-1, 1), mask, Margins(*sides), overlap)
    return canvas.movedim(1, -1), hole[:, 0]
