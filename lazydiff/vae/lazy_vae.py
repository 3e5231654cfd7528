"""Decode, or encode, only what an edit needs, with a Stable Diffusion VAE (SD, SDXL, SD3, Flux) as it is.

A full pass leaves a state: its output, and what its global operators knew, which are the group norms (mean and
variance, by cells of the latent) and the attention in the middle (keys and values). A lazy pass computes the mask's
boxes alone, with as much around them as each stage still needs; in group norms and attention the boxes' fresh values
take the place of the old ones among those of the whole map. With unchanged latents this is exact. After an edit it is
not quite, because changed statistics change all of the map: how much, a small probe far from the edit tells.

    full_decode, full_encode   all of it; leaves a state
    lazy_decode, lazy_encode   what a mask needs; leaves a state for the next edit
    plan_decode, plan_encode   which boxes that is, and the work
    decode_plan, encode_plan   these boxes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.masks import to_grid
from ..sparse.boxes import Box, Size, size_of
from .passes import FullPass, SparsePass, VAEState, macs, put, run_stages
from .stages import Stage, decoder_stages, encoder_stages, reached, sizes

LIMIT = 0.6  # of the full work: beyond that, all is computed
# A GPU starts a kernel in some 8 µs, in which a fast one could do as many multiply-adds: work that a lazy pass, of many
# small kernels, has more of. Kernels for each group norm and what comes with it, counted by benchmarks/launches.py:
LAUNCH = 2 * 10**9
LAUNCHES_FULL, LAUNCHES_LAZY, LAUNCHES_BOX = 13, 38, 13
PROBE = 4  # latents, the side of the box that is computed far from an edit
GAP = 6  # latents between boxes: below that, one crop of both is less work than the surroundings of two


class Plan(NamedTuple):
    """What a lazy pass would compute."""

    boxes: tuple[Box, ...]  # of the output
    macs: int  # multiply-adds of convolutions and attention, per item of a batch
    full: int  # of a full pass
    probe: Box | None  # of the output too, computed for the statistics alone; None where all is near the edit
    launches: tuple[int, int] = (0, 0)  # what starting kernels costs either pass on a GPU, lazy and full, likewise

    @property
    def share(self) -> float:
        """Of the work of a full pass."""
        lazy, full = self.launches
        return (self.macs + lazy) / (self.full + full)


class LazyResult(NamedTuple):
    output: Tensor  # [B, C, H, W], the old one with the fresh boxes pasted in
    state: VAEState  # for the next edit
    plan: Plan
    lazy: bool  # False: the boxes would have been too much work, and all was computed


@torch.no_grad()
def full_decode(vae: Any, latent: Tensor) -> VAEState:
    """The VAE's own decode of latents [B, C, h, w], as `vae.decode` takes them, and what a lazy decode needs of it.

    vae: diffusers' `AutoencoderKL` or ComfyUI's `first_stage_model`: anything with such a `decoder`.
    Errors: ValueError for a decoder of another kind.
    """
    return _full(decoder_stages(vae), latent, size_of(latent))


@torch.no_grad()
def full_encode(vae: Any, image: Tensor) -> VAEState:
    """The VAE's own encode of images [B, 3, H, W] in -1…1, and what a lazy encode needs of it.

    The output is the latents' mean and log-variance [B, 2C, h, w], not scaled.
    Errors: ValueError for an encoder of another kind, or an image whose sides are no multiples of a latent's.
    """
    stages = encoder_stages(vae)
    return _full(stages, image, _latent_size(stages, size_of(image)))


@torch.no_grad()
def lazy_decode(vae: Any, latent: Tensor, state: VAEState, mask: Tensor, limit: float = LIMIT) -> LazyResult:
    """Decode what the mask needs of edited latents and paste it into the canvas's last decode.

    latent: [B, C, h, w], edited inside the mask alone; state: of the canvas's last decode, of the batch or of one item
    mask:   [B or 1, 1, H, W] in pixels, above 0.5 is hole; a batch is decoded in the boxes of all of its masks
    limit:  share of the full work beyond which all is decoded, 0…1
    Errors: ValueError for a VAE of another kind, or sizes that do not fit together.
    """
    state = _of_batch(state, latent)
    stages = decoder_stages(vae)
    if size_of(state.output) != sizes(stages, size_of(latent))[-1]:
        raise ValueError(f"the canvas was decoded at {_words(size_of(state.output))}, these latents are not: "
                         "decode them in full")  # fmt: skip
    return _lazy(stages, latent, state, _plan_decode(stages, mask, size_of(latent)), size_of(latent), limit)


@torch.no_grad()
def lazy_encode(vae: Any, image: Tensor, state: VAEState, mask: Tensor, limit: float = LIMIT) -> LazyResult:
    """Encode the latents that edited pixels reach and paste them into the canvas's last encode.

    image: [B, 3, H, W] in -1…1, edited inside the mask alone; state, mask, limit: as for `lazy_decode`
    Errors: ValueError for a VAE of another kind, or sizes that do not fit together.
    """
    state = _of_batch(state, image)
    stages = encoder_stages(vae)
    latent = _latent_size(stages, size_of(image))
    if size_of(state.output) != latent:
        raise ValueError(f"the image is {_words(size_of(image))}, and its canvas was encoded at another size: "
                         "encode it in full first")  # fmt: skip
    return _lazy(stages, image, state, _plan_encode(stages, mask, size_of(image)), latent, limit)


@torch.no_grad()
def decode_plan(vae: Any, latent: Tensor, state: VAEState, plan: Plan) -> VAEState:
    """What `lazy_decode` leaves, by a plan that was made before, whatever share of the work that is."""
    return _sparse(decoder_stages(vae), latent, state, plan, size_of(latent))


@torch.no_grad()
def encode_plan(vae: Any, image: Tensor, state: VAEState, plan: Plan) -> VAEState:
    """Likewise."""
    stages = encoder_stages(vae)
    return _sparse(stages, image, state, plan, _latent_size(stages, size_of(image)))


def plan_decode(vae: Any, mask: Tensor) -> Plan:
    """Boxes of the image, in whole latents, that hold the mask [B, 1, H, W] and one pixel around it, and the work.

    The pixel around is what a seamless blend reads of the result. Boxes far apart are separate where that is less work.
    """
    stages = decoder_stages(vae)
    cell = sizes(stages, (1, 1))[-1][0]
    return _plan_decode(stages, mask, (mask.shape[-2] // cell, mask.shape[-1] // cell))


def plan_encode(vae: Any, mask: Tensor) -> Plan:
    """Boxes of the latents that the pixels of a mask [B, 1, H, W] reach, and the work."""
    return _plan_encode(encoder_stages(vae), mask, size_of(mask))


def _plan_decode(stages: Sequence[Stage], mask: Tensor, size: Size) -> Plan:
    image = sizes(stages, size)[-1]
    cell = image[0] // size[0]
    hole = _cells(F.max_pool2d(mask.float(), 3, 1, 1), image, cell)
    return _plan(stages, hole, size, lambda box: box, cell, mask.device.type == "cuda")


def _plan_encode(stages: Sequence[Stage], mask: Tensor, size: Size) -> Plan:
    cell = size[0] // _latent_size(stages, size)[0]
    hole, on_gpu = _cells(mask, size, cell), mask.device.type == "cuda"
    return _plan(stages, hole, size, lambda box: reached(stages, box.scaled(cell), size), 1, on_gpu)


def _cells(mask: Tensor, image: Size, cell: int) -> Tensor:
    """Mask [B, 1, H, W] -> [h, w] bool on the CPU: latents with any hole pixel of any item."""
    if size_of(mask) != image:
        raise ValueError(f"the canvas is {_words(image)}, the mask is {_words(size_of(mask))}: make the mask match it")
    return (to_grid(mask.float(), cell) > 0.5).any(0)[0].cpu()


def _plan(
    stages: Sequence[Stage], hole: Tensor, size: Size, spread: Callable[[Box], Box], scale: int, on_gpu: bool
) -> Plan:
    """hole: [h, w]; size: of the input; spread: latents that edited ones change; scale: of the output to latents."""

    @cache
    def work(target: Box) -> int:
        return macs(stages, size, target.scaled(scale))

    boxes = _boxes(hole, lambda box: work(spread(box)))
    targets = [spread(box) for box in boxes]
    probe = _probe(boxes, size_of(hole))
    total = sum(map(work, [*targets, probe] if probe else targets))
    full = work(Box.whole(size_of(hole)))
    launches = _launches(stages, len(boxes) + (probe is not None)) if on_gpu else (0, 0)
    return Plan(tuple(box.scaled(scale) for box in targets), total, full, probe and probe.scaled(scale), launches)


def _launches(stages: Sequence[Stage], boxes: int) -> tuple[int, int]:
    """What starting kernels costs a lazy pass of so many boxes, and a full one, in multiply-adds."""
    parts = [part for stage in stages for part in vars(stage).values() if isinstance(part, nn.Module)]
    norms = sum(isinstance(module, nn.GroupNorm) for part in parts for module in part.modules())
    lazy = LAUNCHES_LAZY + LAUNCHES_BOX * boxes if boxes else 0
    return LAUNCH * norms * lazy, LAUNCH * norms * LAUNCHES_FULL


def _probe(boxes: Sequence[Box], size: Size) -> Box | None:
    """The place farthest from all boxes, of corners (the least work), edges and centre; None if that is near too."""

    def distance(probe: Box) -> int:
        return min(max(box.top - probe.bottom, probe.top - box.bottom, box.left - probe.right, probe.left - box.right)
                   for box in boxes)  # fmt: skip

    rows, columns = ((0, side - PROBE, (side - PROBE) // 2) for side in size)
    places = [Box(top, left, top + PROBE, left + PROBE) for top in rows for left in columns if min(top, left) >= 0]
    best = max(places, key=distance, default=None) if boxes else None
    return best if best and distance(best) >= PROBE else None


def _boxes(hole: Tensor, work: Callable[[Box], float], top: int = 0, left: int = 0) -> list[Box]:
    """Boxes that hold all of a mask [h, w] bool: one, or those on both sides of its widest gap where they cost less."""
    rows, columns = (hole.any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return []
    box = Box(top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1)
    gaps = [F.pad(inside.diff() - 1, (0, 1)).max(0) for inside in (rows, columns)]
    axis = int(gaps[1].values > gaps[0].values)
    if gaps[axis].values < GAP:
        return [box]
    cut = int((rows, columns)[axis][gaps[axis].indices]) + 1
    near, far = hole.tensor_split([cut], axis)
    parts = _boxes(near, work, top, left) + _boxes(far, work, top + cut * (axis == 0), left + cut * (axis == 1))
    return parts if sum(map(work, parts)) < work(box) else [box]


def _full(stages: Sequence[Stage], x: Tensor, latent: Size) -> VAEState:
    record = FullPass(latent)
    target = Box.whole(sizes(stages, size_of(x))[-1])
    return record.state(run_stages(record, stages, x, [target])[0].x)


def _lazy(stages: Sequence[Stage], x: Tensor, state: VAEState, plan: Plan, latent: Size, limit: float) -> LazyResult:
    if plan.share > limit:
        state = _full(stages, x, latent)
        return LazyResult(state.output, state, plan, False)
    state = _sparse(stages, x, state, plan, latent)
    return LazyResult(state.output, state, plan, True)


def _sparse(stages: Sequence[Stage], x: Tensor, state: VAEState, plan: Plan, latent: Size) -> VAEState:
    if not plan.boxes:
        return state
    update = SparsePass(latent, state, probed=plan.probe is not None)
    patches = run_stages(update, stages, x, [*plan.boxes, plan.probe] if plan.probe else plan.boxes)
    return update.state(put(state.output, patches[: len(plan.boxes)]))


def _of_batch(state: VAEState, x: Tensor) -> VAEState:
    if len(state.output) not in (1, len(x)):
        raise ValueError(f"the canvas has {len(state.output)} pictures, the edit {len(x)}: use one canvas, or as many")
    return state.expand(len(x))


def _latent_size(stages: Sequence[Stage], image: Size) -> Size:
    latent = sizes(stages, image)[-1]
    cell = 2 ** sum(stage.after((2, 2)) != (2, 2) for stage in stages)
    if any(side % cell for side in image):
        raise ValueError(f"the image is {_words(image)}: crop or pad it until both sides are multiples of {cell}")
    return latent


def _words(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
