"""Our model as a denoiser: guidance, prompts and contexts bound to its decoder, against one row at a time."""

from __future__ import annotations

import pytest
import torch
from samples import scene
from torch import Tensor

from lazydiff.model.context import LazyContext
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.encode import encode
from lazydiff.sampling.denoiser import lazy_denoiser

PROMPTS = ["a red tree", "another one"]


def canvas(model: LazyDiffusion, number: int = 1) -> LazyContext:
    return encode(model, *scene(number)[:2])


def noisy(context: LazyContext, rows: int = 2) -> Tensor:
    return torch.randn(rows, context.hole.count, context.canvas.shape[-1])


@pytest.mark.parametrize("guidance", [1.0, 2.0, 0.0])
@pytest.mark.parametrize("negative", ["", "a boat"])
def test_guidance_goes_from_the_negative_prompts_estimate_to_the_prompts(
    model: LazyDiffusion, guidance: float, negative: str
) -> None:
    """Written out with a call for each branch. Tolerance: another batch size sums matrix products in another order,
    and where a diffusion is nearly all noise its estimates are some hundred times larger than the tokens."""
    context = canvas(model)
    z = noisy(context)
    for sigma in (0.95, 0.4):
        wanted, other = (
            lazy_denoiser(model, context, prompts, guidance=1)(z, sigma) for prompts in (PROMPTS, [negative] * 2)
        )
        expected = other + guidance * (wanted - other)
        guided = lazy_denoiser(model, context, PROMPTS, guidance, negative)(z, sigma)
        assert (guided - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_context_serves_rows_in_turn(model: LazyDiffusion) -> None:
    """Of two canvases the first serves rows 0 and 2, the second 1 and 3. Tolerance: sums in another order."""
    scenes = [scene(1), scene(2)]
    context = encode(model, torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]))
    prompts, z = [*PROMPTS, "a boat", "a house"], noisy(context, rows=4)
    together = lazy_denoiser(model, context, prompts, guidance=2.0)(z, 0.5)
    for row, prompt in enumerate(prompts):
        one = canvas(model, 1 + row % 2)
        n = one.hole.count
        alone = lazy_denoiser(model, one, [prompt], guidance=2.0)(z[row : row + 1, :n], 0.5)
        assert (together[row, :n] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()


def test_what_stands_around_modules_is_asked_for_at_every_level(model: LazyDiffusion) -> None:
    """With the places that are no padding: rows of a batch of canvases are told apart."""
    asked = []

    def gate_at(sigma: float, valid: Tensor | None) -> object:
        asked.append((sigma, None if valid is None else valid.sum(1).tolist()))
        return lambda module, prepare, *others: module(prepare(), *others)

    scenes = [scene(1), scene(2)]
    context = encode(model, torch.cat([s[0] for s in scenes]), torch.cat([s[1] for s in scenes]))
    z = noisy(context)
    gated = lazy_denoiser(model, context, PROMPTS, 2.0, gate_at=gate_at)  # type: ignore[arg-type]
    plain = lazy_denoiser(model, context, PROMPTS, 2.0)
    for sigma in (0.9, 0.3):
        found, expected = (denoise(z, sigma)[context.hole.valid] for denoise in (gated, plain))
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()  # masked instead of packed
    assert context.hole.counts is not None
    assert asked == [(sigma, list(context.hole.counts) * 2) for sigma in (0.9, 0.3)]
