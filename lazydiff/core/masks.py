"""Masks on the pixel grid: 1 = hole (to be generated), 0 = visible."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def binarise(mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Soft mask [B, 1, H, W] in 0…1 -> float mask of zeros and ones; a value equal to the threshold is visible."""
    return (mask > threshold).float()


def bounds(mask: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """First row and the one behind the last, and columns alike, of what is above 0 in a mask [B, 1, H, W]; of a batch,
    of all its masks together. None of a mask without."""
    hole = (mask > 0).any(0)[0]
    rows, columns = (hole.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return ((rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)) if rows else None


def fill_islands(mask: Tensor) -> Tensor:
    """Mask [B, 1, H, W] of zeros and ones with every visible island filled that the hole encloses; one that touches the
    border of the canvas is not enclosed.

    What is outside is flooded from the border, by whole runs of rows and columns at a time, until nothing more is wet.
    """
    box = bounds(mask)
    if box is None:
        return mask
    (top, bottom), (left, right) = box
    # The hole's own rectangle: what is visible along its sides is open to the rest of the canvas or at the border.
    barrier = mask[..., top:bottom, left:right] > 0
    wet = torch.zeros_like(barrier)
    for side in (wet[..., :1, :], wet[..., -1:, :], wet[..., :1], wet[..., -1:]):
        side.fill_(True)
    wet &= ~barrier
    while True:
        before = int(wet.sum())
        for axis in (-1, -2):
            wet = _flood(wet, barrier, axis)
        if int(wet.sum()) == before:
            break
    filled = mask.clone()
    filled[..., top:bottom, left:right].masked_fill_(~wet, 1)
    return filled


def _flood(wet: Tensor, barrier: Tensor, axis: int) -> Tensor:
    """All of each visible run along an axis that is wet somewhere."""
    place = torch.arange(1, wet.shape[axis] + 1, dtype=torch.int32, device=wet.device)
    place = place.view(-1, 1) if axis == -2 else place
    reached = wet
    for turned in (False, True):
        water, walls = ((x.flip(axis) if turned else x) * place for x in (wet, barrier))
        flooded = water.cummax(axis).values > walls.cummax(axis).values
        reached = reached | (flooded.flip(axis) if turned else flooded)
    return reached


def distance(mask: Tensor, reach: int) -> Tensor:
    """Euclidean distance in pixels of every pixel to the hole, [B, 1, H, W]: exact up to `reach`, at least that beyond.

    Along rows by running maxima, then the best of `reach` rows above and below: the work grows with the reach, not with
    the area of a disc.
    """
    hole = mask > 0.5
    column = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.float32)
    behind = torch.where(hole, column, -torch.inf).cummax(-1).values
    ahead = torch.where(hole, column, torch.inf).flip(-1).cummin(-1).values.flip(-1)
    row = torch.minimum(column - behind, ahead - column).square()
    nearest = row.clone()
    for step in range(1, min(reach, mask.shape[-2] - 1) + 1):
        below, above = nearest[..., step:, :], nearest[..., :-step, :]
        torch.minimum(below, row[..., :-step, :] + step**2, out=below)
        torch.minimum(above, row[..., step:, :] + step**2, out=above)
    return nearest.sqrt()


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Dilate (pixels > 0) or erode (pixels < 0) a mask [B, 1, H, W] by a disc of that radius."""
    if pixels == 0:
        return mask
    if pixels < 0:
        return 1 - grow(1 - mask, -pixels)
    return (distance(mask, pixels) <= pixels).to(mask.dtype)


def feather(mask: Tensor, pixels: int) -> Tensor:
    """Soften the edge of a mask [B, 1, H, W] outwards: 1 on the mask, falling by whole rings to 0 `pixels` away."""
    if pixels <= 0:
        return mask
    return (1 - distance(mask, pixels).ceil() / pixels).clamp(min=0).to(mask.dtype)


def guided_filter(heat: Tensor, image: Tensor, radius: int, softness: float = 1e-3) -> Tensor:
    """Lead a heat map [B, 1, H, W] in 0…1 to the edges of its image [B, 3, H, W] in 0…1, as far as they are near.

    In every window of `radius` pixels around a pixel the heat is taken for a linear function of the colour.
    softness: variance of colours below which a window is flat, and its heat merely averaged
    Source: He et al. 2013, Guided Image Filtering, equations 14, 19 and 20.
    """

    def mean(x: Tensor) -> Tensor:
        for side in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
            x = F.avg_pool2d(x, side, stride=1, padding=(side[0] // 2, side[1] // 2), count_include_pad=False)
        return x

    def product(x: Tensor, y: Tensor) -> Tensor:
        return (x[:, :, None] * y[:, None]).flatten(1, 2)

    colour, level = mean(image), mean(heat)
    spread = mean(product(image, image)) - product(colour, colour)
    common = mean(image * heat) - colour * level
    spread[:, ::4] += softness  # on the diagonal
    slope = solve_each(spread.unflatten(1, (3, 3)), common)
    offset = level - (slope * colour).sum(1, keepdim=True)
    return ((mean(slope) * image).sum(1, keepdim=True) + mean(offset)).clamp(0, 1)


def solve_each(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution [B, 3, H, W] of every pixel's own three equations, by elimination.

    matrix: [B, 3, 3, H, W], symmetric and positive definite; right: [B, 3, H, W]
    A solver of batches is made for larger systems, and checks each for errors.
    """
    (a, b, c), (_, d, e), (_, _, f) = (row.unbind(1) for row in matrix.unbind(1))
    x, y, z = right.unbind(1)
    second, third = b / a, c / a
    d, e, y = d - second * b, e - second * c, y - second * x
    last = e / d
    z = (z - third * x - last * y) / (f - third * c - last * e)
    y = (y - e * z) / d
    return torch.stack(((x - b * y - c * z) / a, y, z), dim=1)


def to_grid(mask: Tensor, cell: int) -> Tensor:
    """Max-pool a mask [B, 1, H, W] to cells of `cell` pixels -> [B, 1, H/cell, W/cell]: any hole pixel makes a hole."""
    return F.max_pool2d(mask, cell)
