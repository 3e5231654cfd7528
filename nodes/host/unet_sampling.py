"""KV contexts of a UNet: its steps compute tiles around the hole; calls of the whole canvas record what these need.

Nothing of the host's network is copied or replaced, and nothing is left on it between two calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from functools import partial
from typing import Any

import comfy.model_management as mm
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...lazydiff.cache.kv_cache import CacheFull, CacheReader, CacheWriter
from ...lazydiff.cache.kv_context import KVContext
from .architectures import Dense
from .controlnets import Residuals, net_of
from .kv_call import NoRoom
from .kv_recording import ModelCall
from .kv_sampling import KEY, KVSampling
from .kv_state import KVSamplingState
from .steps import count_evaluations
from .unet import UNetLayout
from .unet_patches import carried, obstacle


class UNetSamplingState(KVSamplingState):
    """One sampling of a UNet."""

    def make_layout(self, patcher: Any) -> UNetLayout:
        return UNetLayout(patcher.model.diffusion_model, self.context, patcher.load_device)

    def obstacle(self, options: dict[str, Any]) -> str:
        return obstacle(options)

    def prompts(self, given: weakref.ref[Any], options: dict[str, Any]) -> list[Hashable]:
        own = given if options.get("patches_replace", {}).get("attn2") else None  # as patches, its alone
        return [(own, prompt) for prompt in super().prompts(given, options)]


class UNetSampling(KVSampling):
    """A context attached to a MODEL that is a UNet."""

    state = UNetSamplingState
    expected = 9

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        for kind, wrapper in (
            (WrappersMP.PREPARE_SAMPLING, self.prepare), (WrappersMP.APPLY_MODEL, self.apply_model),
        ):  # fmt: skip
            model.remove_wrappers_with_key(kind, KEY)
            model.add_wrapper_with_key(kind, KEY, wrapper)
        count_evaluations(model, KEY, lambda: self.now and self.now.steps)
        return model

    def anchor_bytes(self, model: Any) -> int:
        assert self.now is not None
        return bytes_of(model, self.context, self.now.layout)

    def record(self, writer: CacheWriter, executor: Any, given: ModelCall, control: Residuals | None) -> None:
        assert self.now is not None
        try:
            with self.now.layout.unet.calling(writer):
                executor(given.x, given.t, given.concat, given.text, control, given.options, **given.others)
        except CacheFull as reason:
            raise NoRoom(str(reason)) from reason

    def apply_model(
        self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
        transformer_options: dict[str, Any] | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """One call of the model, in latents; t: [B] noise levels."""
        options, now = transformer_options or {}, self.now
        # The network takes residuals off their lists.
        residuals = control and {place: list(each) for place, each in control.items()}
        dense = partial(executor, x, t, c_concat, c_crossattn, residuals, options, **kwargs)
        if now is None or not now.can_be_lazy(x, self.known, options):
            return dense()
        layout: UNetLayout = now.layout
        given = ModelCall(x, t, c_concat, c_crossattn, options, kwargs, net_of(now.guider, options))
        action = self.action(executor, given, now.steps.sigma(t))
        if action is None:
            return dense()
        lazy = isinstance(action, CacheReader)
        try:
            if lazy:
                control, options = layout.strips(control), carried(options, layout)
            with layout.unet.calling(action):
                denoised: Tensor = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        except (CacheFull, Dense) as reason:
            now.stay_dense(str(reason))
        except mm.OOM_EXCEPTION:
            if lazy:
                raise
            now.stay_dense("there is not enough memory for what is to be kept")
        if now.why_dense:
            if not lazy:
                action.forget()
            return dense()
        action.end()
        if lazy:
            rows = denoised.unflatten(0, (-1, len(self.known)))
            denoised = torch.where(self.hole, rows, self.known.to(denoised)).flatten(0, 1)
        return denoised


def unet_bytes(model: Any, context: KVContext) -> int:
    """What one anchor of a UNet keeps for one prompt and one picture; see `TiledUNet.bytes`."""
    return bytes_of(model, context, UNetLayout(model.model.diffusion_model, context, torch.device("cpu")))


def bytes_of(model: Any, context: KVContext, layout: UNetLayout) -> int:
    size = (model.model.manual_cast_dtype or model.model.get_dtype()).itemsize
    kept = 1 if context.settings.precision == "fp8" else size
    return layout.unet.bytes(1, size, kept)
