"""KV contexts: a stock diffusion transformer of the host, computed on hole tokens alone.

Nothing of the host's networks is copied or replaced. The MODEL gets wrappers around a sampling and around each call of
the model, and object patches that see the arguments of its blocks and of its output module: the first block is given
the computed tokens of its image sequence, the output module's answer is put back in its place, and in between every
self-attention is handed the kept keys and values of all other tokens.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import comfy.model_management as mm
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import prepare_mask
from torch import Tensor

from ...lazydiff.cache.kv_cache import (
    MEGABYTE,
    UNET_THRESHOLD,
    AnchorSession,
    CacheReader,
    CacheWriter,
    KVSettings,
    dilate,
)
from ...lazydiff.cache.kv_context import ContextKey, KVContext
from ...lazydiff.cache.recording import RecordingSession
from ...lazydiff.core.tokens import HoleTokens
from ...lazydiff.pipeline.decode import composite_latents
from .architectures import ARCHITECTURES, Dense, architecture, token_size
from .controlnets import Residuals, ask, at_tokens, conds_of, net_of
from .kv_call import REFERENCES, KVCall, NoRoom
from .kv_recording import CanvasRecorder, ModelCall, VisibleCall
from .kv_state import KVSamplingState
from .model import check_numbers
from .prompts import check_stock_prompts
from .steps import Steps, count_evaluations
from .token_patches import control_attentions, patched
from .unet import UNET, is_unet

KEY = "lazydiffusion_kv"


def kv_context(model: Any, latent: Tensor, mask: Tensor, settings: KVSettings, vae: Any) -> KVContext:
    """A context of canvases for a stock MODEL; nothing is computed yet.

    latent: [B, C, h, w] or [B, C, 1, h, w], the canvas as the VAE makes it
    mask: [B, 1, H, W] bool, pixels
    """
    check_numbers(latent)
    shape, token, home = architecture(model), token_size(model), mm.intermediate_device()
    hole = HoleTokens.from_mask(mask, token).to(home)
    if shape is not None:
        settings = settings._replace(ring=max(settings.ring, shape.ring))
    elif is_unet(model):
        settings = settings._replace(threshold=UNET_THRESHOLD)
    name = shape.name if shape else UNET if is_unet(model) else ""
    network = weakref.ref(model.model)
    return KVContext(ContextKey(), network, name, hole, latent.to(home), mask.to(home), token, settings, vae)


def anchor_bytes(model: Any, context: KVContext, text: int = 0) -> int:
    """What one anchor keeps for one prompt and one picture: keys and values of every self-attention, of the tokens that
    are not computed; 2 · attentions · tokens · width · bytes.

    text: text tokens that are kept too
    """
    network, settings = model.model.diffusion_model, context.settings
    shape = ARCHITECTURES[type(network).__name__]
    tokens = context.hole.total + shape.tail(network, context.hole.total)
    tokens -= dilate(context.hole, settings.ring).count
    sequences = [
        tokens + (text if kind == "joint" else 0)
        for stage in shape.stages
        for block in getattr(network, stage.blocks)
        for kind in stage.attentions[: 1 + bool(getattr(getattr(block, "x_block", None), "x_block_self_attn", True))]
    ]
    canvas = context.hole.total - dilate(context.hole, settings.ring).count
    sequences += [canvas] * control_attentions(model.model_options["transformer_options"])
    size = 1 if settings.precision == "fp8" else (model.model.manual_cast_dtype or model.model.get_dtype()).itemsize
    return 2 * sum(sequences) * int(operator.attrgetter(shape.width)(network)) * size


class KVSampling:
    """A context attached to a MODEL: what happens around its samplings and around the calls of the model in them."""

    state: type[KVSamplingState] = KVSamplingState
    expected = 4  # automatic anchors of 20 steps, for the estimate of memory

    def __init__(self, model: Any, context: KVContext):
        self.context, self.shape, self.network = context, architecture(model), model.model.diffusion_model
        self.given = weakref.ref(model)
        self.now: KVSamplingState | None = None
        self.hole: Tensor  # of the sampling in progress, [B, 1, h, w] bool: cells that may change
        self.known: Tensor  # and its canvas as samplers see it
        self.recorder: CanvasRecorder
        self.call: KVCall | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> KVSampling:
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
        count_evaluations(model, KEY, lambda: self.now and self.now.steps)
        if self.shape.output is not None:
            self.patch(model, self.shape.output, KVCall.output)
        if self.shape.refiners is not None:
            for i in range(len(getattr(self.network, self.shape.refiners))):
                self.patch(model, f"{self.shape.refiners}.{i}", lambda call, *given: call.refiner(*given))
        for stage in self.shape.stages:
            blocks = getattr(model.model.diffusion_model, stage.blocks)
            for i, block in enumerate(blocks):
                last = stage is self.shape.stages[-1] and i == len(blocks) - 1
                self.patch(model, f"{stage.blocks}.{i}", partial(KVCall.block, stage=stage, last=last))
                if stage.attention is not None:
                    name, function = stage.attention
                    around = partial(KVCall.self_attention, function=function, module=getattr(block, name))
                    self.patch(model, f"{stage.blocks}.{i}.{name}", around)
        return model

    def patch(self, model: Any, module: str, around: Callable[..., Any]) -> None:
        path = f"diffusion_model.{module}.forward"
        forward = model.get_model_object(path)
        while isinstance(forward, partial) and forward.func is in_a_call:  # of a context that was attached before
            forward = forward.args[-1]
        # The host leaves patches on a network until it uses it for something else: they must not keep a context alive.
        model.add_object_patch(path, partial(in_a_call, weakref.ref(self), around, forward))

    # Around a sampling

    def sampling(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Tensor | None = None,
        *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Before any weights are loaded: refuse what does not fit. In the end: give back what was not to change."""
        patcher, context = executor.class_obj.model_patcher, self.context
        context.check(patcher.model, noise)
        check_numbers(latent)
        hole = context.hole.cells(noise.shape[-2] // context.hole.grid[0])
        hole = hole.unsqueeze(2) if noise.ndim == 5 else hole
        hole = hole.repeat(-(-len(noise) // len(hole)), *[1] * (noise.ndim - 1))[: len(noise)].to(latent.device)
        if mask is None:
            mask = hole.float().to(patcher.load_device)
        whole = mask.ndim == noise.ndim and mask.shape[-2:] == noise.shape[-2:]
        cells = (mask if whole else prepare_mask(mask, noise.shape, mask.device)) > 0  # the host may do that later
        if (cells & ~hole.to(mask.device)).any():
            raise ValueError("the latent's noise mask covers more than this context's hole: encode with the same mask")
        if not context.hole.count:
            return latent
        conds, device = conds_of(executor.class_obj), patcher.load_device
        for cond in conds:
            check_stock_prompts(cond, len(context.canvas), len(noise))
        self.hole, self.known = hole.to(device), patcher.model.process_latent_in(latent).to(device)
        self.now, out = self.state(context, executor.class_obj, Steps(sampler, sigmas)), None
        mm.free_memory(self.now.cache.bytes, device)
        if isinstance(self.now.session, AnchorSession):
            self.now.session.to(device)
        elif context.name:
            size = len(conds) * self.anchor_bytes(patcher)
            visible = torch.where(self.hole, torch.zeros_like(self.known), self.known)
            self.recorder = CanvasRecorder(patcher.model, self.now.session, visible, len(context.canvas), size)
        try:
            out = executor(noise, latent, sampler, sigmas, mask, *args, **kwargs)
        finally:
            self.now.end(whole=out is not None)
            self.now = None
            del self.hole, self.known
            vars(self).pop("recorder", None)
        out = torch.where(cells.to(out.device), out, latent.to(out))
        return composite_latents(latent, out, context.mask, context.size[0] // latent.shape[-2])

    def anchor_bytes(self, model: Any) -> int:
        """What one anchor keeps for one prompt and one picture."""
        return anchor_bytes(model, self.context)

    def prepare(self, executor: Any, model: Any, shape: Any, *args: Any, **kwargs: Any) -> Any:
        """While weights are loaded: leave room on the device for what will be kept."""
        settings, real, now = self.context.settings, model.model, self.now
        needed = 0
        if now is not None and settings.place == "device" and not (now.layout.everything or now.session.dense):
            anchors = min(settings.anchors or self.expected, len(now.session.schedule) - 1)
            anchors = anchors if settings.reuse else min(anchors, 2)  # while the next is made, the last is there
            recorded = isinstance(now.session, RecordingSession)
            count = len(now.session.levels) * len(self.context.canvas) if recorded else anchors * shape[0]
            needed = 2 * count * self.anchor_bytes(model)
            needed = min(needed, settings.limit * MEGABYTE) if settings.limit else needed
            needed = needed if recorded else max(needed - now.cache.bytes, 0)  # what is there takes no more
        required, others = real.memory_required, vars(real).get("memory_required")
        real.memory_required = lambda *args, **kwargs: required(*args, **kwargs) + needed
        try:
            return executor(model, shape, *args, **kwargs)
        finally:  # a method left on its own object would keep the model from being freed
            del real.memory_required
            if others is not None:
                real.memory_required = others

    def apply_model(
        self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
        transformer_options: dict[str, Any] | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """One call of the model, in latents; t: [B] noise levels."""
        options, now, shape = transformer_options or {}, self.now, self.shape
        dense = partial(executor, x, t, c_concat, c_crossattn, control, options, **kwargs)
        if now is None or shape is None or not now.can_be_lazy(x, self.known, options):
            return dense()
        if shape.references == "before":  # other networks tell this themselves
            options = {**options, REFERENCES: [self.tokens(each) for each in kwargs.get("ref_latents") or ()]}
        given = ModelCall(x, t, c_concat, c_crossattn, options, kwargs, net_of(now.guider, options))
        action = self.action(executor, given, now.steps.sigma(t))
        if action is None:
            return dense()
        call = KVCall(shape, self.network, now.layout, action, options)
        try:
            denoised = self.make(call, executor, given, control)
        except Dense as reason:
            now.stay_dense(str(reason))
            return dense()
        if call.problem or not call.seen:
            now.stay_dense(call.problem or "its blocks are not called")
            return dense() if isinstance(action, CacheReader) else denoised
        action.end()
        if isinstance(action, CacheReader):
            rows = denoised.unflatten(0, (-1, len(self.known)))
            denoised = torch.where(self.hole, rows, self.known.to(denoised)).flatten(0, 1)
        return denoised

    def make(self, call: KVCall, executor: Any, given: ModelCall, control: Residuals | None) -> Tensor:
        """Make a call of the model in which tokens are left out, or keys kept."""
        control = at_tokens(control, call)
        try:
            self.call = call
            with patched(call):
                return executor(given.x, given.t, given.concat, given.text, control, call.options, **given.others)
        finally:
            self.call = None

    def action(self, executor: Any, given: ModelCall, sigma: float) -> CacheWriter | CacheReader | None:
        """What a call is to do with keys and values; None where it has to compute everything and keeps nothing."""
        now = self.now
        assert now is not None
        prompts = self.recorded(executor, given, sigma) if isinstance(now.session, RecordingSession) else []
        if now.why_dense:
            return None
        if isinstance(now.session, AnchorSession):
            prompts = now.prompts(self.given, given.options)
        return now.session.call(sigma, prompts)

    def recorded(self, executor: Any, given: ModelCall, sigma: float) -> list[Hashable]:
        """The names of the prompts of a call, all of which are recorded; none where they cannot be."""
        now = self.now
        assert now is not None

        def run(writer: CacheWriter, given: ModelCall) -> None:
            told = {**given.others, "c_crossattn": given.text, "c_concat": given.concat}
            control = given.net and ask(given.net, given.x, given.t, told, given.options)
            self.record(writer, executor, given, control)

        try:
            return self.recorder(given, sigma, now.owner(self.given, given.options), run)
        except NoRoom as reason:
            now.stay_dense(str(reason))
        except Dense as reason:
            now.use_anchors(str(reason))
        return []

    def record(self, writer: CacheWriter, executor: Any, given: ModelCall, control: Residuals | None) -> None:
        """Make a call of the model that records."""
        assert self.now is not None and self.shape is not None
        call = VisibleCall(self.shape, self.network, self.now.layout, writer, given.options)
        self.make(call, executor, given, control)
        if not call.seen:
            raise Dense("its blocks are not called")

    def tokens(self, latent: Tensor) -> int:
        """How many tokens a reference latent is of."""
        patch = self.network.patch_size
        return -(-latent.shape[-2] // patch) * -(-latent.shape[-1] // patch)


def in_a_call(
    sampling: weakref.ref[KVSampling], around: Callable[..., Any], forward: Callable[..., Any], *args: Any,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """A module's forward, or what stands around it during a lazy call of the model."""
    there = sampling()
    if there is None or there.call is None:
        return forward(*args, **kwargs)
    return around(there.call, forward, args, kwargs)
