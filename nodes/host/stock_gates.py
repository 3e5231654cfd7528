"""Gates of stock transformers: whole blocks that would change their tokens as at the step before are not computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ...lazydiff.cache.module_skip import ModuleCall, SkipCalibrator, load_gates
from .architectures import ARCHITECTURES, BlockList, architecture
from .gates import GatedSampling
from .kv_call import ANCHOR, Arguments
from .kv_sampling import in_a_call
from .model import LazyModel, model_name
from .progress import show
from .settings import GATES_FOLDER

CALIBRATE = "calibrate"


class StockGates(GatedSampling):
    """What decides in the samplings of a stock MODEL; a module is a block, kept is what it adds to its tokens.

    With a KV context, anchor steps compute everything, and what a call with some of the tokens kept serves the next
    one with them only.
    """

    modules = "blocks"

    def __init__(self, ratio: float, tell: Callable[[str], None]):
        super().__init__(None, ratio, tell)
        self.call: ModuleCall | None = None

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        network = model.model.diffusion_model
        around = {"": self.forward}
        for stage in ARCHITECTURES[type(network).__name__].stages:
            for i in range(len(getattr(network, stage.blocks))):
                around[f"{stage.blocks}.{i}."] = partial(self.block, len(around) - 1, stage)
        self.blocks = len(around) - 1
        for module, function in around.items():
            path = f"diffusion_model.{module}forward"
            model.add_object_patch(path, innermost(function, model.get_model_object(path)))
        return model

    def watch(self, model: Any, levels: tuple[float, ...]) -> SkipCalibrator:
        return SkipCalibrator(levels, self.blocks)

    def forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One call of the network."""
        options = kwargs.get("transformer_options") or {}
        # Nodes that replace blocks may call the model once more for the same prompt, with other answers.
        if self.run is None or options.get("patches_replace", {}).get("dit"):
            return forward(*args, **kwargs)
        rows, anchor = len(args[0]), options.get(ANCHOR)
        if anchor:
            self.run.decisions.asked += rows * self.blocks
            return forward(*args, **kwargs)
        prompts = rows, anchor, *zip(options["cond_or_uncond"], options["uuids"], strict=True)
        self.call = self.run.call(self.level(options["sigmas"]), prompts)
        try:
            return forward(*args, **kwargs)
        finally:
            self.call = None

    def block(self, number: int, stage: BlockList, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One block in it, or its tokens with what was kept."""
        call = self.call
        if call is None:
            return forward(*args, **kwargs)
        given, names = Arguments(stage.order, args, kwargs), stage.returns or (stage.image,)
        streams, computed = [given[name] for name in names], []

        def residual(image: Tensor) -> Tensor:
            before = [stream.clone() for stream in streams]  # some blocks write into their arguments
            answer = forward(*args, **kwargs)
            computed.append(answer)
            after = answer if stage.returns else (answer,)
            return torch.cat([new - old for new, old in zip(after, before, strict=True) if new is not None], 1)

        call.module = number
        kept = call(residual, lambda: given[stage.image])
        if computed:
            return computed[0]
        if kept.shape[1] < sum(stream.shape[1] for stream in streams):  # a last block that gives no text
            return tuple(given[name] + kept if name == stage.image else None for name in names)
        parts = kept.split([stream.shape[1] for stream in streams], 1)
        answer = tuple(stream + part for stream, part in zip(streams, parts, strict=True))
        return answer if stage.returns else answer[0]


def innermost(around: Callable[..., Any], forward: Any) -> Any:
    """A patch next to the module itself, under those of KV contexts and in place of earlier gates'."""
    if isinstance(forward, partial):
        if forward.func is in_a_call:
            *context, inner = forward.args
            return partial(in_a_call, *context, innermost(around, inner))
        if forward.func is gated:
            forward = forward.args[1]
    return partial(gated, around, forward)


def gated(around: Callable[..., Any], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return around(forward, *args, **kwargs)


# What the node does


def attach_gates(model: Any, gates: str, ratio: float, threshold: float) -> Any:
    """A clone of a MODEL whose samplings are gated: `gates` names a file of trained ones, or is CALIBRATE.

    Errors: ValueError for gates of another model, and for a stock model whose blocks are not known.
    """
    if not isinstance(model.model, LazyModel):
        check_stock(model, gates)
        return StockGates(ratio, show).attach(model)
    trained = None
    if gates != CALIBRATE:
        trained = load_gates(folder_paths.get_full_path_or_raise(GATES_FOLDER, gates), threshold)
        trained.check(model.model.fingerprint)
    return GatedSampling(trained, ratio, show).attach(model)


def check_stock(model: Any, gates: str) -> None:
    """Errors: ValueError for a model without transformer blocks that are known, or with trained gates."""
    name = model_name(model)
    if architecture(model) is None:
        raise ValueError(
            f"this MODEL is a {name}: gates are for LazyDiffusion models and for the stock transformers that Lazy "
            "Context Encode makes lazy. Connect one of them"
        )
    if gates != CALIBRATE:
        raise ValueError(f"this MODEL is a {name}, and {gates} is for a LazyDiffusion model: choose “{CALIBRATE}”")
