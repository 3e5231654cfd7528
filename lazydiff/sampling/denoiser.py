"""Our model as samplers see it, bound to a context and to prompts: noisy hole tokens in, clean estimates out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from ..model.context import LazyContext
from ..model.layers import Gate, always
from ..model.lazydiffusion import LazyDiffusion
from .flow import Network, predict_clean
from .guidance import branches, guide
from .samplers import Denoiser, flow_denoiser, iddpm_denoiser

# Called as gate_at(sigma, valid): what stands around the modules at a noise level; valid: [B, n] bool, or None for all.
GateAt = Callable[[float, Tensor | None], Gate]


def lazy_denoiser(
    model: LazyDiffusion,
    context: LazyContext,
    prompts: Sequence[str],
    guidance: float,
    negative: str = "",
    gate_at: GateAt | None = None,
) -> Denoiser:
    """The decoder on hole tokens alone, bound to everything that does not change from step to step.

    prompts: one for each row; a context of one canvas serves any number, one of B canvases serves its rows in turn
    """
    text = model.prompt([*prompts, *[negative] * (len(prompts) * (branches(guidance) - 1))])
    times = len(prompts) * branches(guidance) // len(context.tokens)
    hole, tokens = context.hole.tile(times), context.tokens.to(model.precision).repeat(times, 1, 1)
    if gate_at is not None:
        hole = hole.keep_padding()  # what is kept of a module is a row's own

    def predict(z: Tensor, sigma: float) -> tuple[Tensor, Tensor | None]:
        gate = always if gate_at is None else gate_at(sigma, hole.key_mask)

        def network(x: Tensor, t: Tensor) -> Tensor:
            return model.decoder(x.to(model.precision), t, text, hole, tokens, gate=gate).float()

        return of_network(model, network, guidance).predict(z, sigma)

    return Denoiser(predict)


def of_network(model: LazyDiffusion, network: Network, guidance: float) -> Denoiser:
    """A decoder bound to `branches(guidance)` times its rows, guided, as a denoiser."""
    prediction = model.config.prediction
    if prediction == "iddpm":
        return iddpm_denoiser(guide(network, guidance, learned_variance=True))
    estimate = partial(predict_clean, network, variance=model.variance, prediction=prediction)
    return flow_denoiser(guide(estimate, guidance))  # not of answers, some of which are variances
