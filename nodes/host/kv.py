"""KV contexts: a stock diffusion transformer of the host, computed on hole tokens alone between anchor steps.

Nothing of the host's networks is copied or replaced. The MODEL gets wrappers around a sampling and around each call of
the model, and object patches that see the arguments of its blocks and of its output module: the first block is given
the computed tokens of its image sequence, the output module's answer is put back in its place, and in between every
self-attention is handed the kept keys and values of all other tokens.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import comfy.model_management as mm
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...lazydiff.anchors import MEGABYTE, Anchors, KVSettings, Replay, Run, with_ring
from ...lazydiff.context import KVContext
from ...lazydiff.masks import to_grid
from ...lazydiff.tokens import HoleTokens
from .architectures import ARCHITECTURES, Architecture, Stage
from .kv_call import Call, Dense, Layout
from .model import check_numbers

KEY = "lazydiffusion_kv"
# What other packs and the host's own step-skipping nodes leave in a call's options, and tokens pass through.
STEP_SKIPPING = ("easycache", "lazycache", "teacache", "magcache", "fbcache", "wavespeed")
EXPECTED = 4  # automatic anchors of a sampling, for the estimate of memory
TOKEN_PATCHES = ("post_input", "double_block", "single_block", "noise_refiner", "attn1_patch", "attn1_output_patch")


def architecture(model: Any) -> Architecture | None:
    """How to make a MODEL lazy, or None for one that stays dense."""
    return ARCHITECTURES.get(type(model.model.diffusion_model).__name__)


def kv_context(model: Any, latent: Tensor, mask: Tensor, settings: KVSettings, space: Any) -> KVContext:
    """A context of canvases for a stock MODEL; nothing is computed yet.

    latent: [B, C, h, w] or [B, C, 1, h, w], the canvas as the VAE makes it
    mask: [B, 1, H, W] of zeros and ones, pixels
    """
    check_numbers(latent)
    shape = architecture(model)
    token = token_size(model)
    hole = HoleTokens.from_grid_mask(to_grid(mask, token)[:, 0] > 0)
    home = mm.intermediate_device()
    name = shape.name if shape else ""
    reference = weakref.ref(model.model)
    return KVContext(reference, name, hole.to(home), latent.to(home), token, Anchors(settings), [], space)


def token_size(model: Any) -> int:
    """Pixels per side of a token of the MODEL's; of models that have none, of a latent cell."""
    if architecture(model) is None:
        return downscale(model)
    patch = model.model.diffusion_model.patch_size
    return downscale(model) * (patch if isinstance(patch, int) else patch[-1])


def downscale(model: Any) -> int:
    """Pixels per side of a latent cell."""
    return getattr(model.model.latent_format, "spacial_downscale_ratio", 8)


def anchor_bytes(model: Any, context: KVContext, text: int = 0) -> int:
    """What one anchor keeps for one prompt and one picture: keys and values of every self-attention, of the tokens that
    are not computed; 2 · attentions · tokens · width · bytes.

    text: text tokens that are kept too
    """
    shape, network = architecture(model), model.model.diffusion_model
    settings = context.anchors.settings
    tokens = context.hole.total - with_ring(context.hole, settings.ring).count
    sequences = [
        tokens + (text if kind == "joint" else 0)
        for stage in shape.stages
        for block in getattr(network, stage.blocks)
        for kind in stage.attentions[: 1 + bool(getattr(getattr(block, "x_block", None), "x_block_self_attn", True))]
    ]
    size = 1 if settings.precision == "fp8" else (model.model.manual_cast_dtype or model.model.get_dtype()).itemsize
    return 2 * sum(sequences) * int(operator.attrgetter(shape.width)(network)) * size


class LazySampling:
    """A context attached to a MODEL: what happens around its samplings and around the calls of the model in them."""

    def __init__(self, model: Any, context: KVContext):
        self.context, self.shape, self.network = context, architecture(model), model.model.diffusion_model
        self.run: Run | None = None
        self.call: Call | None = None
        self.why_dense = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> LazySampling:
        return self  # the host copies a MODEL's options; a sampling goes on where it began

    def attach(self, model: Any) -> Any:
        """A clone of the MODEL whose samplings are of this context."""
        model = model.clone()
        wrappers = {WrappersMP.OUTER_SAMPLE: self.sampling}
        if self.shape is not None:
            wrappers |= {WrappersMP.PREPARE_SAMPLING: self.prepare, WrappersMP.APPLY_MODEL: self.apply_model}
        for kind, wrapper in wrappers.items():
            model.remove_wrappers_with_key(kind, KEY)
            model.add_wrapper_with_key(kind, KEY, wrapper)
        if self.shape is None:
            return model
        self.patch(model, self.shape.output, self.output)
        for stage in self.shape.stages:
            for i, block in enumerate(getattr(model.model.diffusion_model, stage.blocks)):
                self.patch(model, f"{stage.blocks}.{i}", self.block, stage)
                if stage.attention is not None:
                    name, function = stage.attention
                    self.patch(model, f"{stage.blocks}.{i}.{name}", self.attention, function, getattr(block, name))
        return model

    def patch(self, model: Any, module: str, around: Callable[..., Any], *told: Any) -> None:
        path = f"diffusion_model.{module}.forward"
        model.add_object_patch(path, partial(around, model.get_model_object(path), *told))

    # Around the network's modules

    def block(self, forward: Callable[..., Any], stage: Stage, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.call is None else self.call.block(stage, forward, args, kwargs)

    def attention(
        self, forward: Callable[..., Any], function: Callable[..., Any], module: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self.call is None or not self.call.attentions:
            return forward(*args, **kwargs)
        return function(module, self.call.extend, self.call.options, *args, **kwargs)

    def output(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.call is None else self.call.output(forward, *args, **kwargs)

    # Around a sampling

    def sampling(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Tensor | None = None,
        *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Before any weights are loaded: refuse what does not fit. In the end: give back what was not to change."""
        patcher = executor.class_obj.model_patcher
        check_fit(patcher, self.context, noise)
        check_numbers(latent)
        hole = self.context.hole.cells(noise.shape[-2] // self.context.hole.grid[0])
        hole = hole.unsqueeze(2) if noise.ndim == 5 else hole
        hole = hole.repeat(-(-len(noise) // len(hole)), *[1] * (noise.ndim - 1))[: len(noise)].to(latent.device)
        if mask is None:
            mask = hole.expand_as(noise).float()
        elif ((mask > 0) & ~hole.to(mask.device)).any():
            raise ValueError("the latent's noise mask covers more than this context's hole: encode with the same mask")
        if not self.context.hole.count:
            return latent
        device = patcher.load_device
        self.layout = Layout(self.context.hole, self.context.anchors.settings, device)
        self.hole, self.known = hole.to(device), patcher.model.process_latent_in(latent).to(device)
        self.patches, self.orders = patcher.patches_uuid, defaultdict(list)
        self.words: dict[Hashable, str] = {}
        self.why_dense, self.told = "", set()
        anchors = self.context.anchors
        self.run = anchors.run(sigmas.tolist())
        self.run.to(device)
        try:
            out = executor(noise, latent, sampler, sigmas, mask, *args, **kwargs)
            self.run.finish()
        finally:
            run, self.run, self.known = self.run, None, None
            run.to(mm.unet_offload_device())  # between samplings others need the device
            self.context.held[:] = anchors.tensors()
        return torch.where(mask.to(out.device) > 0, out, latent.to(out))

    def prepare(self, executor: Any, model: Any, shape: Any, *args: Any, **kwargs: Any) -> Any:
        """While weights are loaded: leave room on the device for what will be kept."""
        settings, real = self.context.anchors.settings, model.model
        needed = 0
        if settings.place == "device" and not self.layout.everything:
            needed = 2 * shape[0] * (settings.anchors or EXPECTED) * anchor_bytes(model, self.context)
            needed = min(needed, settings.limit * MEGABYTE) if settings.limit else needed
        required = real.memory_required
        real.memory_required = lambda *args, **kwargs: required(*args, **kwargs) + needed
        try:
            return executor(model, shape, *args, **kwargs)
        finally:
            real.memory_required = required

    def apply_model(
        self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
        transformer_options: dict[str, Any] | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """One call of the model, in latents; t: [B] noise levels."""
        options = transformer_options or {}
        dense = partial(executor, x, t, c_concat, c_crossattn, control, options, **kwargs)
        if self.run is None or self.layout.everything or not self.can_be_lazy(x, options):
            return dense()
        action = self.run.call(float(t.flatten()[0]), self.prompts(options, c_crossattn))
        call = Call(self.shape, self.network, self.layout, action, options)
        try:
            if isinstance(action, Replay):
                control = self.of_computed(control)
            self.call = call
            denoised = executor(x, t, c_concat, c_crossattn, control, call.options, **kwargs)
        except Dense as reason:
            self.call = None
            self.stay_dense(str(reason))
            return dense()
        finally:
            self.call = None
        if call.problem or not call.seen:
            self.stay_dense(call.problem or "its blocks are not called")
            return dense() if isinstance(action, Replay) else denoised
        action.end()
        if isinstance(action, Replay):
            rows = len(x) // len(self.known)
            repeats = rows, *[1] * (x.ndim - 1)
            denoised = torch.where(self.hole.repeat(repeats), denoised, self.known.repeat(repeats).to(denoised))
        return denoised

    def can_be_lazy(self, x: Tensor, options: dict[str, Any]) -> bool:
        if self.why_dense:
            return False
        if x.shape[1:] != self.known.shape[1:]:
            self.tell("a part of the canvas is computed whole, because Conditioning (Set Area) cuts it out")
            return False
        skipping = [name for name in options if any(known in str(name).lower() for known in STEP_SKIPPING)]
        if skipping:
            self.stay_dense(f"{skipping[0]} skips steps of its own")
        elif options.get("patches_replace", {}).get("dit"):
            self.stay_dense("another node replaces the model's blocks")
        elif patches := [name for name in TOKEN_PATCHES if options.get("patches", {}).get(name)]:
            self.stay_dense(f"another node's patch ({patches[0]}) needs all tokens")
        return not self.why_dense

    def prompts(self, options: dict[str, Any], text: Tensor | None) -> list[Hashable]:
        """Which prompt each part of a batch is of: positive or negative, and which of them.

        Samplings with other words in the same places share anchors, unless text tokens are kept.
        """
        keys: list[Hashable] = []
        for i, (role, uuid) in enumerate(zip(options["cond_or_uncond"], options["uuids"], strict=True)):
            known = self.orders[role]
            if uuid not in known:
                known.append(uuid)
            key = (self.patches, role, known.index(uuid))
            if self.layout.keep_text:
                if uuid not in self.words:
                    part = text.chunk(len(options["uuids"]))[i]
                    self.words[uuid] = hashlib.sha256(part.float().cpu().numpy().tobytes()).hexdigest()
                key = (*key, self.words[uuid])
            keys.append(key)
        return keys

    def of_computed(self, control: Any) -> Any:
        """A ControlNet's residuals [B, N, d] at the computed tokens."""
        if control is None:
            return None

        def gather(residual: Tensor | None) -> Tensor | None:
            if residual is None:
                return None
            if residual.ndim != 3 or residual.shape[1] != self.layout.total:
                raise Dense("its ControlNet is not of the canvas's tokens")
            return residual.index_select(1, self.layout.image.to(residual.device))

        return {place: [gather(residual) for residual in residuals] for place, residuals in control.items()}

    def stay_dense(self, reason: str) -> None:
        """The rest of this sampling computes every token."""
        self.why_dense = reason
        self.tell(f"every step computes the whole canvas, because {reason}")

    def tell(self, line: str) -> None:
        if line not in self.told:
            logging.info("Lazy Diffusion: %s", line)
            self.told.add(line)


def check_fit(patcher: Any, context: KVContext, noise: Tensor) -> None:
    """Errors: ValueError for a context of another model or of a canvas of another size."""
    if context.model() is not patcher.model:
        raise ValueError("this context was made for another model: encode the canvas again with this one")
    cell = context.size[0] // context.canvas.shape[-2]
    if noise.shape[-2:] != context.canvas.shape[-2:]:
        (height, width), (y, x) = noise.shape[-2:], context.size
        raise ValueError(
            f"this context was made for {x}×{y}, the canvas is {width * cell}×{height * cell}: encode it again"
        )
    if len(noise) % len(context.canvas):
        raise ValueError(f"this context is of {len(context.canvas)} canvases, the batch is of {len(noise)} latents")
