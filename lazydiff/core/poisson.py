"""Poisson image blending: the source's gradients inside the hole, the destination's pixels everywhere else.

Discrete system of Perez, Gangnet & Blake, "Poisson Image Editing" (SIGGRAPH 2003), eqs. 7-8, solved in membrane form:
the result is source + correction, where the correction is harmonic inside the hole and equals destination - source on
the known pixels around it: a smooth unknown, for which float32 is enough.

The solver is conjugate gradients, preconditioned by one multigrid V-cycle on 2x2 aggregates. Summing edge weights over
aggregates gives the same kind of five-point stencil again, so any mask, canvas border or number of components is
handled by the weights alone. All loops have a fixed length, and the host waits for the device but once: to know the box
of the hole, and that the values are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Gradients = Literal["source", "mixed"]

DAMPING = 0.8  # of the Jacobi smoother
OVER_CORRECTION = 1.8  # of the coarse grids: piecewise constants alone give about half of what is needed
COARSEST = 64  # cells at most, whose equations are solved directly


@torch.no_grad()
def poisson_blend(
    destination: Tensor,
    source: Tensor,
    mask: Tensor,
    gradients: Gradients = "source",
    iterations: int | None = None,
) -> Tensor:
    """Fill the hole of `destination` with the content of `source`, without a seam.

    destination: [B, C, H, W] floating point, any range; returned bit-identical wherever there is no hole.
    source:      [B, C, H, W], same range; must be meaningful in the hole and one pixel around it.
    mask:        [B, 1, H, W] in 0..1 or bool; above 0.5 is hole. An item that is all hole becomes the source.
    gradients:   "source", or "mixed": per edge and channel, the stronger of the source's and the destination's.
    iterations:  of the solver; the default leaves less than 0.04 of a grey level (of 255) in float32 on painted masks.
                 A megapixel hole strewn with single known pixels can take 32 for that.

    Returns a new tensor with the shape and dtype of `destination`, neither clipped nor rounded, without autograd. Half
    precision is solved in float32, float64 in itself, and mixed gradients in a long thin hole in float64. The canvas
    border is free (no flux), so a hole may touch it.
    Raises ValueError for input that does not fit together or is not finite.
    Source: Perez et al. 2003, eqs. 7-8; for mixed gradients eqs. 12-13, here per edge.
    """
    _check(destination, source, mask, gradients, iterations)
    hole = mask > 0.5
    result = torch.where(hole, source.to(destination.dtype), destination)

    # An item that is all hole has no known pixel to agree with: it keeps the source and takes no part in the solve.
    unknown = hole & ~hole.all(dim=(1, 2, 3), keepdim=True)
    # The only time that the device is waited for: what follows is as much work as the hole is large.
    *values, top, bottom, left, right = torch.cat((_ranges(destination, source, mask), _bounds(unknown))).tolist()
    _check_values(values)
    if top > bottom:
        return result

    box = _box(int(top), int(bottom), int(left), int(right))
    dtype = torch.promote_types(torch.promote_types(destination.dtype, source.dtype), torch.float32)
    if gradients == "mixed" and _is_strip(unknown[box]) and unknown.device.type != "mps":  # which has no float64
        dtype = torch.float64
    f, g, unknown = destination[box].to(dtype), source[box].to(dtype), unknown[box]
    if iterations is None:
        iterations = 14 if unknown[0].numel() <= 2_000_000 else 20

    levels = _build_levels(unknown, dtype)
    correction = _conjugate_gradients(levels, _right_hand_side(f, g, unknown, gradients), iterations)
    result[box] = torch.where(unknown, (g + correction).to(result.dtype), result[box])
    return result


def _check(destination: Tensor, source: Tensor, mask: Tensor, gradients: str, iterations: int | None) -> None:
    for name, tensor in (("destination", destination), ("source", source), ("mask", mask)):
        if tensor.ndim != 4 or tensor.numel() == 0:
            raise ValueError(f"{name} must be a batch [B, C, H, W] of at least one pixel, got {list(tensor.shape)}")
    if destination.shape != source.shape:
        raise ValueError(
            f"destination is {_size(destination)}, source is {_size(source)}: make the source match the destination"
        )
    if mask.shape != destination[:, :1].shape:
        raise ValueError(
            f"destination is {_size(destination)}, mask is {_size(mask)}: "
            "the mask needs the destination's batch and size, and one channel"
        )
    for name, image in (("destination", destination), ("source", source)):
        if not image.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {image.dtype}: convert it first")
    if gradients not in get_args(Gradients):
        raise ValueError(f"gradients must be {' or '.join(get_args(Gradients))}, got {gradients!r}")
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")


def _size(image: Tensor) -> str:
    batch, channels, height, width = image.shape
    return f"{width}x{height} ({batch} in the batch, {channels} channels)"


def _ranges(*images: Tensor) -> Tensor:
    """Least and greatest value of each."""
    return torch.stack([value.float() for image in images for value in image.aminmax()])


def _check_values(ranges: Sequence[float]) -> None:
    """ranges: of destination, source and mask"""
    for name, (low, high) in {"destination": ranges[:2], "source": ranges[2:4]}.items():
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name} contains NaN or infinity: the step before failed, often a VAE in half precision")
    low, high = ranges[4:]
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise ValueError(f"mask must lie within 0..1, got {low:g}..{high:g}: divide an 8-bit mask by 255")


def _bounds(unknown: Tensor) -> Tensor:
    """First and last row and column of a batch with an unknown pixel; without any, the first is above the last."""
    ends = []
    for dims in ((0, 1, 3), (0, 1, 2)):
        inside = unknown.any(dim=dims)
        places = torch.arange(len(inside), dtype=torch.float32, device=inside.device)
        ends += [places.where(inside, torch.inf).min(), places.where(inside, -torch.inf).max()]
    return torch.stack(ends)


def _box(top: int, bottom: int, left: int, right: int) -> tuple[slice, ...]:
    """Index of the smallest crop that holds every unknown pixel and its neighbours."""
    return (slice(None), slice(None), slice(max(top - 1, 0), bottom + 2), slice(max(left - 1, 0), right + 2))


def _is_strip(unknown: Tensor) -> bool:
    """Whether a hole is so long that what rounds off along mixed gradients adds up to whole grey levels."""
    short, long = sorted(unknown.shape[-2:])
    return long > 512 and long >= 8 * short


def _right_hand_side(f: Tensor, g: Tensor, unknown: Tensor, gradients: Gradients) -> Tensor:
    """Of the correction's equation: destination f minus source g on known neighbours, plus any mixed-in gradients."""
    rhs = _sum_neighbours((f - g).masked_fill(unknown, 0))
    if gradients == "mixed":
        for dim in (-2, -1):
            df, dg = f.diff(dim=dim), g.diff(dim=dim)
            change = torch.where(df.abs() > dg.abs(), df - dg, 0)  # of the guidance on each edge, relative to source's
            no_edge = torch.zeros_like(f.narrow(dim, 0, 1))  # beyond the canvas
            rhs -= change.diff(dim=dim, prepend=no_edge, append=no_edge)
    return rhs.masked_fill_(~unknown, 0)


def _sum_neighbours(x: Tensor) -> Tensor:
    """Sum of the four neighbours of every pixel; there are none beyond the canvas."""
    padded = F.pad(x, (1, 1, 1, 1))
    return padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]


class _Level:
    """One grid of the hierarchy: a weighted five-point stencil, zero wherever nothing is unknown.

    fixed:    [B, 1, h, w] total weight of the edges to known pixels.
    left, up: [B, 1, h, w] weight of the edge to that neighbour when it is unknown too; the first column / row is zero.
    sweeps:   of the smoother before and after the coarser grids.
    """

    def __init__(self, fixed: Tensor, left: Tensor, up: Tensor, sweeps: int) -> None:
        self.fixed, self.left, self.up, self.sweeps = fixed, left, up, sweeps
        self.diagonal = fixed + left + up
        self.diagonal[..., :-1] += left[..., 1:]
        self.diagonal[..., :-1, :] += up[..., 1:, :]
        self.relaxation = _divide(torch.full_like(fixed, DAMPING), self.diagonal)

    def apply(self, u: Tensor) -> Tensor:
        """A u, summed from differences: where u is smooth, diagonal * u - neighbours would cancel, and in float32 that
        costs a large hole whole grey levels."""
        across = (u[..., 1:] - u[..., :-1]).mul_(self.left[..., 1:])
        down = (u[..., 1:, :] - u[..., :-1, :]).mul_(self.up[..., 1:, :])
        out = self.fixed * u
        out[..., 1:] += across
        out[..., :-1] -= across
        out[..., 1:, :] += down
        out[..., :-1, :] -= down
        return out

    def residual(self, u: Tensor, rhs: Tensor) -> Tensor:
        """rhs - A u, in half the work: what cancels does no harm in a preconditioner."""
        left, up = self.left[..., 1:], self.up[..., 1:, :]
        out = torch.addcmul(rhs, self.diagonal, u, value=-1)
        out[..., 1:].addcmul_(left, u[..., :-1])
        out[..., :-1].addcmul_(left, u[..., 1:])
        out[..., 1:, :].addcmul_(up, u[..., :-1, :])
        out[..., :-1, :].addcmul_(up, u[..., 1:, :])
        return out

    def smooth_(self, u: Tensor, rhs: Tensor) -> None:
        """One damped Jacobi sweep, in place."""
        u.addcmul_(self.relaxation, self.residual(u, rhs))

    def inverse(self) -> Tensor:
        """Of the equations as a matrix, [B, h·w, h·w]; cells where nothing is unknown stay as they are."""
        batch, _, height, width = self.fixed.shape
        units = torch.eye(height * width, dtype=self.fixed.dtype, device=self.fixed.device)
        columns = self.apply(units.view(1, -1, height, width).expand(batch, -1, -1, -1)).flatten(2)
        # The check for errors would wait for the device, and there are none: every component has a known neighbour.
        return torch.linalg.inv_ex(columns + units * (self.diagonal.flatten(2) == 0)).inverse

    def coarser(self) -> _Level:
        """The same equations, summed over 2x2 cells: the edges that remain are those that cross between cells."""
        left, up = _sum_pairs(self.left[..., ::2], dim=-2), _sum_pairs(self.up[..., ::2, :], dim=-1)
        return _Level(_sum_cells(self.fixed), left, up, sweeps=2)


def _build_levels(unknown: Tensor, dtype: torch.dtype) -> list[_Level]:
    """From pixels, where a sweep is the most work, down to a few cells."""
    inside = unknown.to(dtype)
    left, up = torch.zeros_like(inside), torch.zeros_like(inside)
    left[..., 1:] = inside[..., 1:] * inside[..., :-1]
    up[..., 1:, :] = inside[..., 1:, :] * inside[..., :-1, :]
    levels = [_Level(_sum_neighbours(1 - inside) * inside, left, up, sweeps=1)]
    while levels[-1].fixed[0].numel() > COARSEST:
        levels.append(levels[-1].coarser())
    return levels


def _conjugate_gradients(levels: list[_Level], rhs: Tensor, iterations: int) -> Tensor:
    """Preconditioned conjugate gradients, one independent run per item and channel. rhs: [B, C, h, w]."""
    bottom = levels[-1].inverse()
    x = torch.zeros_like(rhs)
    direction = torch.zeros_like(rhs)
    residual, rz = rhs, rhs.new_zeros(())
    for _ in range(iterations):
        z = _v_cycle(levels, bottom, residual)
        rz_before, rz = rz, _dot(residual, z)
        direction = torch.addcmul(z, _divide(rz, rz_before), direction)
        product = levels[0].apply(direction)
        step = _divide(rz, _dot(direction, product))
        x.addcmul_(step, direction)
        residual = torch.addcmul(residual, step, product, value=-1)
    return x


def _v_cycle(levels: list[_Level], bottom: Tensor, rhs: Tensor) -> Tensor:
    """Approximate solution of levels[0].apply(u) = rhs; linear and symmetric in rhs, as a preconditioner must be.

    bottom: inverse of the last level
    """
    level, *coarser = levels
    if not coarser:
        # No matrix product, whose rounding would depend on the size of the batch.
        return (rhs.flatten(2)[:, :, None] * bottom[:, None]).sum(-1).view_as(rhs)
    u = level.relaxation * rhs  # a sweep from zero
    for _ in range(level.sweeps - 1):
        level.smooth_(u, rhs)
    cells = _v_cycle(coarser, bottom, _sum_cells(level.residual(u, rhs)))
    height, width = u.shape[-2:]
    u.add_(F.interpolate(cells, scale_factor=2.0)[..., :height, :width], alpha=OVER_CORRECTION)
    for _ in range(level.sweeps):
        level.smooth_(u, rhs)
    return u


def _sum_cells(x: Tensor) -> Tensor:
    """Sum over 2x2 cells; at an odd size the last cells are cut."""
    return _sum_pairs(_sum_pairs(x, dim=-2), dim=-1)


def _sum_pairs(x: Tensor, dim: int) -> Tensor:
    if x.shape[dim] % 2:
        x = torch.cat([x, torch.zeros_like(x.narrow(dim, 0, 1))], dim)
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim)
    return even + odd


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-2, -1), keepdim=True)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, or 0 where b is not positive: pixels outside the hole, channels that have converged."""
    return torch.where(b > 0, a / b, 0)
