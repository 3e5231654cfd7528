"""Sampling: clean hole tokens of a context, for prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.module_skip import MODULES, SkipPolicy
from ..model.config import Sampling
from ..model.context import LazyContext
from ..model.lazydiffusion import LazyDiffusion
from ..sampling.denoiser import lazy_denoiser
from ..sampling.noise import CanvasNoise
from ..sampling.samplers import FLOW_SAMPLERS, Callback, begin, make_sampler
from ..sampling.schedules import from_strength
from .encode import check_rows, check_text, check_values

PROMPTS = "prompts"  # a sampling's prompts share every call of the model


class SampleSettings(NamedTuple):
    """What may be set of a sampling beside prompt and seed.

    sampling: the model's own settings if not given
    negative: what to stay away from
    sketch, strength: [1 or S, 3, H, W] in 0…1, colours to start from inside the mask, and how far they may be changed
    skip: decides which modules are computed, and counts them
    callback: called as callback(done, total, x̂) after each step; what it raises ends the sampling
    """

    sampling: Sampling | None = None
    negative: str = ""
    sketch: Tensor | None = None
    strength: float = 0.8
    skip: SkipPolicy | None = None
    callback: Callback | None = None


@torch.no_grad()
def sample(
    model: LazyDiffusion,
    context: LazyContext,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SampleSettings = SampleSettings(),  # noqa: B008
) -> Tensor:
    """Clean hole tokens [S, n, C·p·p], one row for each prompt with its seed; the context is only read.

    A context of one canvas serves any number of rows; one of B canvases serves its rows in turn (S a multiple of B).
    Errors: ValueError for a context that another model made, a skip policy of another model or of other steps,
    settings that cannot be, prompts or seeds that cannot be used, or an answer that is not made of numbers.
    """
    check_rows(prompts, seeds)
    check_text(settings.negative)
    if context.model != model.fingerprint:
        raise ValueError("this context was made by another model: encode the canvas again with this one")
    context = context.to(model.device)
    sampling = settings.sampling or model.config.sampling
    sampler, sigmas = make_sampler(sampling)
    rows, canvases = len(seeds), len(context.tokens)
    if rows % canvases:
        raise ValueError(f"the context is of {canvases} canvases, and there are {rows} seeds: give a multiple of that")
    hole = context.hole.tile(rows // len(context.tokens))
    noise = CanvasNoise(seeds, hole, context.canvas.shape[-1])
    start = None
    if settings.sketch is not None:
        check_sketch(settings.sketch, context, rows)
        sigmas = from_strength(sigmas, settings.strength, sampling.sampler not in FLOW_SAMPLERS)
        start = hole.gather(model.tokens(settings.sketch.to(model.device).float() * 2 - 1).expand(rows, -1, -1))
    session = gate_at = None
    if settings.skip is not None:
        settings.skip.check_size(MODULES * model.config.network.decoder_depth, model.config.network.width)
        session = settings.skip.session(model.fingerprint, sigmas)
        gate_at = session.gate_at(PROMPTS)
    denoise = lazy_denoiser(model, context, prompts, sampling.guidance, settings.negative, gate_at)
    try:
        tokens = sampler(denoise, begin(noise.next(), sigmas[0], start), sigmas, noise.next, settings.callback)
    finally:
        if session is not None:
            session.clear()
    if not torch.isfinite(tokens).all():
        raise ValueError("what the model made has values that are not numbers: try fp32, or another checkpoint")
    return tokens


def check_sketch(sketch: Tensor, context: LazyContext, rows: int) -> None:
    """Errors: ValueError for a sketch that is not of the canvas's size, not one or as many as rows, or no numbers."""
    height, width = context.size
    if tuple(sketch.shape[1:]) != (3, height, width) or len(sketch) not in (1, rows):
        raise ValueError(f"the sketch is {list(sketch.shape)}: give [1 or {rows}, 3, {height}, {width}]")
    check_values("sketch", sketch)
