"""Models as samplers see them, bound to a canvas, prompts and seeds: noisy hole tokens in, clean estimates out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from . import gates
from .anchors import Recording, Replay, Run, probe_places, with_ring
from .context import LazyContext
from .diffusion.flow import Network
from .diffusion.guidance import branches, guide
from .diffusion.noise import CanvasNoise
from .diffusion.samplers import Denoiser, Sampler, flow_denoiser, iddpm_denoiser
from .model import LazyDiffusion
from .networks.decoder import TextKeys
from .networks.layers import Gate, Memory
from .tokens import HoleTokens

BRANCHES = ("conditional", "unconditional")  # by which anchors know prompts: those of other words serve as well


def denoiser(
    model: LazyDiffusion,
    context: LazyContext,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: float,
    negative: str = "",
    run: Run | None = None,
    gating: gates.Run | None = None,
) -> Denoiser:
    """The decoder bound to everything that does not change from step to step; prompts, seeds: one of each per row.

    run: of the anchors, for models that compute every token; without it they do so at every step
    gating: of the gates, for models that compute hole tokens alone
    """
    text = model.prompt([*prompts, *[negative] * (len(prompts) * (branches(guidance) - 1))])
    if model.config.network.dense:
        return dense(model, context, text, seeds, guidance, run)
    return lazy(model, context, text, seeds, guidance, gating)


def lazy(
    model: LazyDiffusion, context: LazyContext, text: TextKeys, seeds: Sequence[int], guidance: float,
    gating: gates.Run | None,
) -> Denoiser:  # fmt: skip
    """Hole tokens alone, which the context tells of all others."""
    times = len(seeds) * branches(guidance) // len(context.tokens)
    hole, tokens = context.hole.tile(times), context.tokens.repeat(times, 1, 1)

    def bound(**gate: Gate) -> Denoiser:
        return of_network(model, lambda x, t: model.decoder(x, t, text, hole, tokens, **gate), guidance)

    if gating is None:
        return bound()
    together = BRANCHES[: branches(guidance)]
    return Denoiser(
        lambda z, alpha, sigma: bound(gate=gating.call(noise_level(alpha, sigma), together, hole.key_mask)).predict(
            z, alpha, sigma
        )
    )


def dense(
    model: LazyDiffusion, context: LazyContext, text: TextKeys, seeds: Sequence[int], guidance: float, run: Run | None
) -> Denoiser:
    """Every token, or between anchors the hole and its ring. The visible ones are known at every noise level: the
    canvas's own, with the first noise that their seed draws for their places."""
    rows, grid, device = len(seeds), context.hole.grid, context.canvas.device
    times = rows // len(context.tokens)
    hole, canvas = context.hole.tile(times), context.canvas.repeat(times, 1, 1)
    context_tokens = context.tokens.repeat(times * branches(guidance), 1, 1)
    everything = HoleTokens.everything(rows, grid, device)
    noise = CanvasNoise(seeds, everything, canvas.shape[-1]).next()
    some = everything if run is None else with_ring(context.hole, run.anchors.settings.ring).tile(rows)
    rest = ~torch.isin(everything.index[0], some.index[0])
    kept, watched = rest.nonzero()[:, 0], probe_places(context.hole, some)

    def predict(z: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor | None]:
        tokens = hole.scatter(z, alpha * canvas + sigma * noise)
        call = None if run is None else run.call(noise_level(alpha, sigma), BRANCHES[: branches(guidance)])
        computed, memory = everything, None
        if isinstance(call, Recording):
            memory = partial(record, call, kept, some.index[0, watched])
        elif isinstance(call, Replay):
            computed, memory = some, partial(call, probes=watched)
        bound = of_network(model, network(computed, memory), guidance)
        clean, variance = bound.predict(computed.gather(tokens), alpha, sigma)
        if call is not None:
            call.end()

        def at_hole(x: Tensor) -> Tensor:
            return hole.gather(computed.scatter(x, tokens))

        return at_hole(clean), None if variance is None else at_hole(variance)

    def network(computed: HoleTokens, memory: Memory | None) -> Network:
        computed = computed.tile(branches(guidance))
        told = computed.gather(context_tokens)
        return lambda x, t: model.decoder(x, t, text, computed, told, memory)

    return Denoiser(predict)


def record(call: Recording, kept: Tensor, probes: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A decoder's memory that only watches."""
    call(k, v, kept, probes)
    return k, v


def of_network(model: LazyDiffusion, network: Network, guidance: float) -> Denoiser:
    guided = guide(network, guidance, model.config.network.learned_variance)
    if model.config.prediction == "iddpm":
        return iddpm_denoiser(guided)
    return flow_denoiser(guided, model.variance)


def noise_level(alpha: float, sigma: float) -> float:
    """Share of the noise in z = alpha·x + sigma·ε, from 1 to 0 on every path."""
    return sigma / (alpha + sigma)


def noise_levels(sampler: Sampler, steps: int, strength: float | None = None) -> list[float]:
    """The noise levels that a sampler will ask its model about, falling, and 0 at their end: found by letting it run on
    a canvas of one token. strength: of a sketch, None without one"""
    levels: list[float] = []

    def watch(z: Tensor, alpha: float, sigma: float) -> tuple[Tensor, None]:
        levels.append(noise_level(alpha, sigma))
        return torch.zeros_like(z), None

    noise = CanvasNoise([0], HoleTokens.everything(1, (1, 1)), 1)
    start = None if strength is None else torch.zeros(1, 1, 1)
    sampler(Denoiser(watch), noise, steps, start, strength or 1.0)
    return [*levels, 0.0]
