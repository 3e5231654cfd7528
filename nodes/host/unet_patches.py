"""What other nodes put into a UNet: what of it a lazy call can carry, and what needs the whole map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .unet import UNetLayout

CARRIED = {"emb_patch", "attn2_patch", "attn2_output_patch"}
Options = dict[str, Any]


def obstacle(options: Options) -> str:
    """Why other nodes' patches need all of the canvas, if they do."""
    for name, patches in options.get("patches", {}).items():
        if patches and name not in CARRIED:
            return f"{named(patches[0])} ({name}) works on whole feature maps"
    for name, patches in options.get("patches_replace", {}).items():
        if patches and name != "attn2":
            return f"{named(next(iter(patches.values())))} replaces the model's {name}"
    return ""


def named(patch: Any) -> str:
    """Whose a patch is, as far as its function tells."""
    name = getattr(patch, "__qualname__", type(patch).__qualname__).split(".")[0]
    return "another node" if name.startswith(("<", "_")) else name


def carried(options: Options, layout: UNetLayout) -> Options:
    """Options of a call whose patches of cross-attention see every token in its place, those that are not computed as
    zeros: they tell places from the number of tokens, as IP-Adapter's masks do."""
    patches, replaced = dict(options.get("patches", {})), dict(options.get("patches_replace", {}))
    for name in ("attn2_patch", "attn2_output_patch"):
        if name in patches:
            patches[name] = [partial(in_place, layout, patch) for patch in patches[name]]
    if replaced.get("attn2"):
        replaced["attn2"] = {place: partial(in_place, layout, patch) for place, patch in replaced["attn2"].items()}
    return {**options, "patches": patches, "patches_replace": replaced}


def in_place(layout: UNetLayout, patch: Callable[..., Any], x: Tensor, *given: Any) -> Any:
    """x: [B, n, C], the tokens of a strip or of a whole map; the last of what is given are the call's options."""
    level = layout.levels.get(given[-1].get("block"))
    if level is None:
        return patch(x, *given)
    whole = x.new_zeros(len(x), level.size[0] * level.size[1], x.shape[2])
    whole.index_copy_(1, level.targets, x.index_select(1, level.inside))
    shape = [len(x), x.shape[2], *level.size]
    answer = patch(whole, *given[:-1], {**given[-1], "activations_shape": shape})
    if isinstance(answer, tuple):  # queries, and what they meet
        return answer[0].index_select(1, level.places), *answer[1:]
    return answer.index_select(1, level.places)
