"""Patches that the host's nodes put on a network's tokens, in calls that leave some of the tokens out.

A row for each: what stands in for the patch during a call. A patch without a row needs all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from .kv_call import KVCall

# Where a network calls patches that see tokens.
PLACES = (
    "post_input", "noise_refiner", "double_block", "single_block", "attn1_patch", "attn1_output_patch", "attn2_patch",
    "attn2_output_patch", "mlp_patch",
)  # fmt: skip


class TokenPatch(NamedTuple):
    """A patch, and what it is during a call."""

    # Given the call, the patch, and a stack of what is to be undone after the call; None: the call does without it.
    during: Callable[[KVCall, Any, ExitStack], Callable[[Any], Any] | None]
    attentions: Callable[[Any], int] = lambda patch: 0  # how many self-attentions of the canvas's tokens it makes
    note: str = ""  # what users should know


def unchanged(call: KVCall, patch: Any, stack: ExitStack) -> Any:
    """It sees the tokens that there are, each by itself."""
    return patch


def left_out(call: KVCall, patch: Any, stack: ExitStack) -> None:
    return None


def diffsynth(call: KVCall, patch: Any, stack: ExitStack) -> Any:
    """Qwen-Image's, which adds to each token what it makes of that and of the control picture's token there."""
    if not call.some:
        return patch
    few = copy(patch)

    def on_computed(args: dict[str, Any]) -> dict[str, Any]:
        if args["block_index"] == 0:  # it sees to its picture's having the latent's size, and needs all tokens for that
            img = args["img"]
            patch({**args, "img": img.new_zeros(len(img), call.layout.total, img.shape[-1])})
            picture = patch.encoded_image
            vars(few).update(vars(patch) | {"encoded_image": picture.index_select(1, call.canvas.to(picture.device))})
        return few(args)

    return on_computed


def z_image_fun(call: KVCall, patch: Any, stack: ExitStack) -> Any:
    """Z-Image's: a network beside the model's, whose tokens attend to each other; keys are kept as of the model's."""
    network = patch.model_patch.model
    layers = [*network.control_layers, *(network.control_noise_refiner if network.refiner_control else ())]
    for layer in layers:
        surround(layer, partial(control_layer, call), stack)
    stack.callback(setattr, patch, "temp_data", None)  # a call that was broken off leaves some

    def on_computed(args: dict[str, Any]) -> Any:
        if call.some and call.seen:
            # The host cuts off the text tokens that there were before any were left out.
            args = {**args, "img": call.latest[:, call.words(call.text) :]}
            args |= {name: args[name].index_select(1, call.canvas) for name in ("img_input", "pe")}
        return patch(args)

    return on_computed


def control_layer(call: KVCall, forward: Callable[..., Any], c: Tensor, x: Tensor, **kwargs: Any) -> Any:
    """c: [B, tokens of the canvas, d], of the control network's; x: of the model's, before its first block."""
    kwargs["transformer_options"] = call.options
    if not call.seen:
        return call.refiner(forward, [c, x], kwargs)
    if call.some and c.shape[1] == call.layout.total:
        c = c.index_select(1, call.canvas)
    return call.attending(("canvas",), forward, c, x, **kwargs)


def lllite(call: KVCall, patch: Any, stack: ExitStack) -> Any:
    """Anima's: its other patches find here what its control picture says of each token."""

    def on_computed(args: dict[str, Any]) -> Any:
        answer, found = patch(args), args["transformer_options"]["model_patch_data"]
        if call.some and patch in found:
            found[patch] = found[patch].index_select(1, call.canvas)
        return answer

    return on_computed


FLUX_KV_CACHE = TokenPatch(
    left_out,
    note="Flux KV Cache does nothing in lazy steps, because the context keeps the keys of reference images itself",
)
# By the name of their class or function.
PATCHES = {
    "DiffSynthCnetPatch": TokenPatch(diffsynth),
    "ZImageControlPatch": TokenPatch(z_image_fun, lambda patch: patch.model_patch.model.n_control_layers),
    "AnimaLLLitePatch": TokenPatch(lllite),
    "AnimaLLLiteAttentionPatch": TokenPatch(unchanged),
    "AnimaLLLiteMLPPatch": TokenPatch(unchanged),
    "UsoStyleProjectorPatch": TokenPatch(unchanged),  # of the prompt's tokens, all of which are there
    "KV_Attn_Input": FLUX_KV_CACHE,
    "FluxKVCache.execute.<locals>.model_input_patch": FLUX_KV_CACHE,
}


def row(patch: Any) -> TokenPatch | None:
    return PATCHES.get(getattr(patch, "__qualname__", type(patch).__qualname__))


def token_patches(options: dict[str, Any]) -> dict[str, list[Any]]:
    """Those in a call's options, by their place."""
    found = options.get("patches", {})
    return {place: found[place] for place in PLACES if found.get(place)}


def distinct(options: dict[str, Any]) -> list[Any]:
    """Every patch once, wherever it is called."""
    return list({id(patch): patch for each in token_patches(options).values() for patch in each}.values())


def unknown(options: dict[str, Any]) -> list[str]:
    """The places of patches that need all tokens."""
    return [place for place, patches in token_patches(options).items() if not all(map(row, patches))]


def notes(options: dict[str, Any]) -> list[str]:
    return list({known.note for patch in distinct(options) if (known := row(patch)) and known.note})


def control_attentions(options: dict[str, Any]) -> int:
    """How many self-attentions of the canvas's tokens the patches make, beside the model's."""
    return sum(known.attentions(patch) for patch in distinct(options) if (known := row(patch)))


def surround(module: Any, around: Callable[..., Any], stack: ExitStack) -> None:
    """Let a function stand around a module's forward until the stack is closed."""
    before = vars(module).get("forward")
    module.forward = partial(around, module.forward)
    stack.callback(lambda: delattr(module, "forward") if before is None else setattr(module, "forward", before))


@contextmanager
def patched(call: KVCall) -> Iterator[None]:
    """For the time of a call of the model, its patches are told which tokens there are. All of them are known."""
    with ExitStack() as stack:
        now = {id(patch): row(patch).during(call, patch, stack) for patch in distinct(call.options)}  # type: ignore[union-attr]
        given = token_patches(call.options)
        chosen = {place: [now[id(patch)] for patch in given[place] if now[id(patch)]] for place in given}
        call.options["patches"] = {**call.options.get("patches", {}), **chosen}
        yield
