"""Edits of held-out pictures with the trained VAE of `train_vae.py`: by how much a lazy pass differs from a full one.

Latents of the hole are those of another picture, or of the canvas in another light. Lazy and full decode are blended
onto the canvas as the product does it, and compared inside the hole. All is done in part here, however large the hole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lazydiff.core.masks import to_grid
from lazydiff.core.poisson import poisson_blend
from lazydiff.pipeline.decode import composite_latents
from lazydiff.sparse.boxes import Box, size_of
from lazydiff.vae import lazy_vae
from lazydiff.vae.lazy_vae import VAEState, full_decode, full_encode, lazy_decode, lazy_encode
from lazydiff.vae.passes import Statistics

from .subjects import INSIDE, square_mask
from .train_vae import held_out

CELL = 8  # px
PLACES = {"inside": INSIDE, "border": (0.3, 0.0), "corner": (1.0, 1.0)}
CONTENTS = ("another picture", "brighter", "darker")
LIGHT = 0.7  # added or taken away, of values in -1…1
AROUND = 8  # latents around the mask in a crop that is decoded on its own
GOAL = 2.0  # grey levels
CROP, STALE, NO_PROBE, SHIPPED = VARIANTS = ("crop alone", "stale statistics", "without probe", "as shipped")


class Edit(NamedTuple):
    percent: float  # of the canvas
    place: str
    content: str
    canvas: int


@dataclass(frozen=True)
class EditRow:
    edit: Edit
    share: float  # of the full decode's multiply-adds
    grey_levels: dict[str, float]  # by variant: of 255, after blending, mean inside the hole
    latent_error: dict[str, float]  # by variant: of a lazy encode, mean inside the hole, by the latents' deviation


def all_edits(percents: Sequence[float], canvases: int) -> list[Edit]:
    """Every size at every place with every content, on the canvases in turn."""
    cases = [(percent, place, content) for percent in percents for place in PLACES for content in CONTENTS]
    return [Edit(*case, i % canvases) for i, case in enumerate(cases)]


@torch.inference_mode()
def measure_edits(vae: Any, size: int, edits: Iterable[Edit]) -> Iterator[EditRow]:
    """Each edit on its own, of a canvas that was encoded and decoded in full."""
    canvases: dict[int, tuple[Tensor, VAEState, VAEState]] = {}
    for number, edit in enumerate(edits):
        if edit.canvas not in canvases:
            canvas = held_out(edit.canvas, size)
            encoded = full_encode(vae, canvas)
            canvases[edit.canvas] = canvas, encoded, full_decode(vae, latents(encoded.output))
        canvas, encoded, decoded = canvases[edit.canvas]
        mask = square_mask(size, edit.percent, PLACES[edit.place])
        image = pasted(canvas, mask, edit.content, 1000 + number)
        full = latents(full_encode(vae, image).output)
        latent = composite_latents(latents(encoded.output), full, mask, CELL)
        right = blend(canvas, full_decode(vae, latent).output, mask)

        alone = blend(canvas, crop_decode(vae, latent, decoded.output, mask), mask)
        grey, error = {CROP: grey_levels(alone, right, mask)}, {}
        for name in (STALE, NO_PROBE, SHIPPED):
            with variant(name):
                lazy = lazy_decode(vae, latent, decoded, mask, math.inf)
                again = latents(lazy_encode(vae, image, encoded, mask, math.inf).output)
            grey[name] = grey_levels(blend(canvas, lazy.output, mask), right, mask)
            cells = (to_grid(mask, CELL) > 0.5).expand_as(full)
            error[name] = float((again - full)[cells].abs().mean() / full.std())
        yield EditRow(edit, lazy.plan.share, grey, error)


@torch.inference_mode()
def measure_chain(vae: Any, size: int, length: int, number: int) -> list[float]:
    """Grey levels of edits in a row, each decoded from the state and blended onto the canvas that the last one left."""
    rng = np.random.default_rng([size, number])
    canvas = held_out(number, size)
    latent = latents(full_encode(vae, canvas).output)
    state, differences = full_decode(vae, latent), []
    for i in range(length):
        place = float(rng.random()), float(rng.random())
        mask = square_mask(size, float(rng.uniform(1, 10)), place)
        image = pasted(canvas, mask, CONTENTS[i % len(CONTENTS)], 1000 * (number + 1) + i)
        latent = composite_latents(latent, latents(full_encode(vae, image).output), mask, CELL)
        lazy = lazy_decode(vae, latent, state, mask, math.inf)
        blended = blend(canvas, lazy.output, mask)
        differences.append(grey_levels(blended, blend(canvas, full_decode(vae, latent).output, mask), mask))
        canvas, state = blended, lazy.state
    return differences


def pasted(canvas: Tensor, mask: Tensor, content: str, number: int) -> Tensor:
    """The canvas [1, 3, H, W] in -1…1 with other content inside the mask."""
    if content == "another picture":
        new = held_out(number, canvas.shape[-1])
    else:
        new = canvas + (LIGHT if content == "brighter" else -LIGHT)
    return torch.where(mask > 0.5, new.clamp(-1, 1), canvas)


def latents(moments: Tensor) -> Tensor:
    return moments.chunk(2, 1)[0]


def blend(canvas: Tensor, decoded: Tensor, mask: Tensor) -> Tensor:
    return poisson_blend(canvas, decoded.clamp(-1, 1), mask)


def grey_levels(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """Mean difference of images in -1…1 inside a mask, of 255."""
    return 127.5 * float((a - b).abs()[(mask > 0.5).expand_as(a)].mean())


def crop_decode(vae: Any, latent: Tensor, canvas: Tensor, mask: Tensor) -> Tensor:
    """The canvas with a box around the mask decoded as if it were a picture of its own."""
    rows, columns = (to_grid(mask, CELL)[0, 0].amax(axis).nonzero().flatten().tolist() for axis in (1, 0))
    box = Box(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1).grown(AROUND, size_of(latent))
    result = canvas.clone()
    box.scaled(CELL).of(result).copy_(full_decode(vae, box.of(latent).contiguous()).output)
    return result


@contextmanager
def variant(name: str) -> Iterator[None]:
    """The library with that part of its treatment of statistics left out."""
    if name == STALE:
        with patch.object(Statistics, "updated", lambda self, patches, probe: self):
            yield
    elif name == NO_PROBE:
        with patch.object(lazy_vae, "_probe", lambda boxes, size: None):
            yield
    else:
        yield


def edit_table(rows: Sequence[EditRow]) -> str:
    """Mean and worst over edits, by the size of the mask and over all."""
    lines = ["trained VAE, difference from a full pass inside the hole: mean (worst) over edits"]
    lines.append(f"{'mask %':10}work %" + "".join(f"{name:>18}" for name in VARIANTS))
    for label, values in (("grey levels", "grey_levels"), ("latents, % of their deviation", "latent_error")):
        lines.append(label)
        for percent in (*sorted({row.edit.percent for row in rows}), None):
            chosen = [row for row in rows if percent in (None, row.edit.percent)]
            line = f"{'all' if percent is None else f'{percent:g}':10}{100 * mean(row.share for row in chosen):6.1f}"
            for name in VARIANTS:
                found = [getattr(row, values)[name] for row in chosen if name in getattr(row, values)]
                scale = 1 if values == "grey_levels" else 100
                line += f"{scale * mean(found):10.2f} ({scale * max(found):5.2f})" if found else " " * 18
            lines.append(line)
    return "\n".join(lines)


def plot_edits(rows: Sequence[EditRow], chains: Sequence[Sequence[float]]) -> Figure:
    """Grey levels by the size of the mask, mean and worst; and of edits in a row."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left = figure.add_subplot(1, 2, 1, xscale="log", yscale="log", xlabel="mask, % of the canvas")
    percents = sorted({row.edit.percent for row in rows})
    for i, name in enumerate(VARIANTS):
        found = [[row.grey_levels[name] for row in rows if row.edit.percent == percent] for percent in percents]
        left.plot(percents, list(map(mean, found)), "o-", color=f"C{i}", label=name)
        left.plot(percents, list(map(max, found)), ":", color=f"C{i}")
    left.set_xticks(percents, [f"{percent:g}" for percent in percents])
    left.minorticks_off()
    left.set_ylabel("grey levels off, mean (dotted: worst)")
    left.legend()
    right = figure.add_subplot(1, 2, 2, xlabel="edits in a row, as shipped", ylabel="grey levels off")
    for chain in chains:
        right.plot(range(1, len(chain) + 1), chain, "o-", ms=3)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.axhline(GOAL, color="0.5", ls="--")
        axes.grid(alpha=0.3)
    return figure


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
