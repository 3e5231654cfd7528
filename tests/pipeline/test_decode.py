"""Equation 5 at the latent's resolution: sampled latents where the mask asks for them, the canvas's own elsewhere."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from samples import tiny_model
from torch import Tensor

from lazydiff.core.tokens import patchify
from lazydiff.model.config import SMALL
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.decode import composite, composite_latents, decode, to_latents
from lazydiff.pipeline.encode import encode
from lazydiff.pipeline.sample import sample

CELL, PATCH = 8, 2  # PixArt's: four cells of 8 px to a token of 16 px


@pytest.fixture(scope="module")
def pixart(vocabulary: bytes) -> LazyDiffusion:
    return tiny_model("flow", vocabulary, replace(SMALL, cell=CELL, patch=PATCH))


def box(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., top : top + height, left : left + width] = 1
    return mask


def asked_for(mask: Tensor) -> Tensor:
    """Latent cells [M, 12, 12] that a mask touches, by looking at each."""
    cells = torch.zeros(len(mask), 12, 12, dtype=torch.bool)
    for row, y, x in product(range(len(mask)), range(12), range(12)):
        cells[row, y, x] = bool((mask[row, 0, CELL * y : CELL * (y + 1), CELL * x : CELL * (x + 1)] > 0).any())
    return cells


def test_a_hole_across_four_tokens_replaces_the_cells_that_it_touches(pixart: LazyDiffusion) -> None:
    """16 px at the corner where four tokens meet: four tokens of sixteen cells are sampled, four cells are taken."""
    image, mask = torch.rand(1, 3, 96, 96), box(24, 40, 16, 16)
    context = encode(pixart, image, mask)
    assert context.hole.count == 4
    tokens = sample(pixart, context, ["a red tree", "a boat"], [1, 2])
    latents, canvas = to_latents(context, tokens), pixart.latent.encode(image * 2 - 1)

    inside = asked_for(mask).expand(2, -1, -1)
    assert inside.sum() == 2 * 4
    changed = (latents != canvas).any(1)
    assert torch.equal(changed, inside)
    sampled = patchify(latents, PATCH).gather(1, context.hole.tile(2).index[..., None].expand_as(tokens))
    taken = patchify(inside[:, None].expand_as(latents).float(), PATCH)
    taken = taken.gather(1, context.hole.tile(2).index[..., None].expand_as(tokens)) > 0
    assert taken.sum() == 2 * 4 * latents.shape[1] and torch.equal(sampled[taken], tokens[taken])

    # Nothing crosses a cell of this latent space: in pixels, too, the rest is the canvas's own decode.
    pixels, own = decode(pixart, context, tokens), decode(pixart, context, context.hole.gather(context.canvas))
    moved = (pixels != own).any(1)
    assert moved.any() and not moved[~inside.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)].any()


@pytest.mark.parametrize("place", [(0, 0, 1, 1), (7, 7, 2, 2), (95, 95, 1, 1), (0, 0, 96, 96), (13, 20, 31, 5)])
def test_any_pixel_of_a_hole_asks_for_its_cell(place: tuple[int, int, int, int]) -> None:
    mask, (canvas, sampled) = box(*place), torch.randn(2, 1, 4, 12, 12)
    composed = composite_latents(canvas, sampled, mask, CELL)
    inside = asked_for(mask).expand(4, -1, -1)[None]
    assert torch.equal(composed[inside], sampled[inside]) and torch.equal(composed[~inside], canvas[~inside])


def test_variations_of_several_canvases_take_their_own_masks() -> None:
    """Rows in turn: canvases 0, 1, 0, 1. Videos' latents have one dimension more."""
    masks = torch.cat((box(0, 0, 20, 20), box(50, 40, 8, 30)))
    canvas, sampled = torch.randn(2, 4, 12, 12).repeat(2, 1, 1, 1), torch.randn(4, 4, 12, 12)
    composed = composite_latents(canvas, sampled, masks, CELL)
    for row in range(4):
        alone = composite_latents(canvas[row : row + 1], sampled[row : row + 1], masks[row % 2 :][:1], CELL)
        assert torch.equal(composed[row : row + 1], alone) and not torch.equal(alone[0], sampled[row])
    framed = composite_latents(canvas.unsqueeze(2), sampled.unsqueeze(2), masks, CELL)
    assert torch.equal(framed[:, :, 0], composed)


def test_composite_keeps_the_canvas_where_nothing_is_masked() -> None:
    image, generated = torch.rand(1, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert torch.equal(composite(image, generated, torch.zeros(1, 1, 16, 16)), image.expand(2, -1, -1, -1))
