"""Masks on the pixel grid: 1 = hole (to be generated), 0 = visible."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def binarise(mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Soft mask [B, 1, H, W] in 0…1 -> float mask of zeros and ones; a value equal to the threshold is visible."""
    return (mask > threshold).float()


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Dilate (pixels > 0) or erode (pixels < 0) a mask [B, 1, H, W] by a disc of that radius."""
    if pixels == 0:
        return mask
    if pixels < 0:
        return 1 - grow(1 - mask, -pixels)
    radius = torch.arange(-pixels, pixels + 1, device=mask.device)
    disc = (radius[:, None] ** 2 + radius[None] ** 2 <= pixels**2).to(mask.dtype)
    covered = F.conv2d(mask, disc[None, None], padding=pixels)
    return (covered > 0.5).to(mask.dtype)


def feather(mask: Tensor, pixels: int) -> Tensor:
    """Soften the edge of a mask [B, 1, H, W] outwards: 1 on the mask, falling to 0 `pixels` away from it."""
    if pixels <= 0:
        return mask
    soft = mask
    for ring in range(1, pixels):
        soft = torch.maximum(soft, grow(mask, ring) * (1 - ring / pixels))
    return soft


def to_grid(mask: Tensor, cell: int) -> Tensor:
    """Max-pool a mask [B, 1, H, W] to cells of `cell` pixels -> [B, 1, H/cell, W/cell]: any hole pixel makes a hole."""
    return F.max_pool2d(mask, cell)


def pad_to_multiple(image: Tensor, mask: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Extend image [B, C, H, W] and mask [B, 1, H, W] right and below until both sides are multiples of `multiple`.

    The image repeats its edge there, and what is added counts as visible.
    """
    missing = (0, -image.shape[-1] % multiple, 0, -image.shape[-2] % multiple)
    return F.pad(image, missing, mode="replicate"), F.pad(mask, missing)
