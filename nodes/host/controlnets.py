"""ControlNets beside a KV context: residuals that a network adds to its tokens, at those that a call computes."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

from torch import Tensor

from .architectures import Dense
from .kv_call import KVCall

Residuals = dict[str, list[Tensor | None]]  # each [B, tokens of the canvas, d], by where it is added


def at_tokens(control: Residuals | None, call: KVCall) -> Residuals | None:
    """Residuals at the tokens that a call does not leave out."""
    if control is None or not call.some:
        return control

    def gather(residual: Tensor | None) -> Tensor | None:
        if residual is None:
            return None
        if residual.ndim != 3 or residual.shape[1] != call.layout.total:
            raise Dense("its ControlNet is not of the canvas's tokens")
        return residual.index_select(1, call.canvas.to(residual.device))

    return {place: [gather(residual) for residual in residuals] for place, residuals in control.items()}


def chain(net: Any) -> Iterator[Any]:
    """A ControlNet and those that come before it."""
    while net is not None:
        yield net
        net = net.previous_controlnet


def conds_of(guider: Any) -> list[dict[str, Any]]:
    """All prompts of a sampling as they are now: the host adds to them while it begins."""
    return [cond for each in guider.conds.values() for cond in each]


def net_of(guider: Any, options: dict[str, Any]) -> Any:
    """The ControlNet of the prompts of a call, which is the same for all of them."""
    nets = (cond.get("control") for cond in conds_of(guider) if cond.get("uuid") == options["uuids"][0])
    return next(nets, None)


def of_the_host(net: Any) -> bool:
    """Whether what a ControlNet answers depends on nothing but what it is asked."""
    return all(type(each).__module__ == "comfy.controlnet" for each in chain(net))


def ask(net: Any, x: Tensor, t: Tensor, told: dict[str, Any], options: dict[str, Any]) -> Residuals | None:
    """A ControlNet's residuals for a call that is no step of the sampling; of one prompt.

    told: what the model is given beside the noisy latent x and its noise levels t
    """
    return apart(net).get_control(x, t, told, 1, options)


def apart(net: Any) -> Any:
    """The same ControlNets, but that the pictures which they keep for the sampling's batch are not touched."""
    twin = copy(net)
    if net.previous_controlnet is not None:
        twin.previous_controlnet = apart(net.previous_controlnet)
    return twin
