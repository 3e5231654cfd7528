"""The library's encoder and decoder as a MODEL of the host's.

Full-canvas latents go through the host's samplers. Only inside a model call are the hole tokens gathered, decoded and
scattered back, so that every sampler, scheduler and guider works and a call costs what the hole costs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import comfy.conds
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from einops import repeat
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...lazydiff.core.tokens import HoleTokens, patchify, unpatchify
from ...lazydiff.model.checkpoint import CheckpointError
from ...lazydiff.model.config import NetworkConfig
from ...lazydiff.model.context import LazyContext
from ...lazydiff.model.context_encoder import ContextEncoder
from ...lazydiff.model.decoder import LazyDecoder, TextKeys
from ...lazydiff.model.layers import always
from ...lazydiff.model.lazydiffusion import fingerprint
from ...lazydiff.pipeline.decode import composite_latents
from ...lazydiff.sampling.flow import predict_clean
from .gates import gate_of
from .progress import show
from .prompts import MASK, CONDPrompts, check_prompts, words
from .settings import Settings

KEY = "lazydiffusion"  # under which a context travels with a MODEL


class HostAttention:
    """The host's attention function in the library's form."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}  # of the call in progress: how users replace the attention function

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:  # one of the host's functions cuts it into the same pieces as the queries
            mask = mask.expand(-1, -1, q.shape[2], -1)
        options = {"skip_reshape": True, "skip_output_reshape": True, "transformer_options": self.options}
        return optimized_attention(q, k, v, q.shape[1], mask=mask, **options)


class HostDecoder(LazyDecoder):
    """The library's decoder, built as the host builds its networks."""

    def __init__(self, network: NetworkConfig, dtype: torch.dtype, device: Any, operations: Any, **unused: Any):
        super().__init__(network, operations, HostAttention(), dtype=dtype, device=device)
        self.dtype = dtype

    @property
    def in_channels(self) -> int:
        """Some nodes of the host's ask a network for it."""
        return self.config.channels

    @property
    def attention(self) -> HostAttention:
        return self.blocks[0].attn.attention


class ModelBatch(NamedTuple):
    """What a call of the model is about, for its number of rows."""

    known: Tensor  # [n, C, h, w], the canvas latent as the sampler sees it
    hole: HoleTokens
    tokens: Tensor  # of the context


class SamplingState:
    """One sampling: what was found out when it began, and what its steps need again.

    noise: the tensor by which it is recognised
    context: on the sampling device
    known: [n, C, h, w], the canvas latent as the sampler sees it; raw: the same as it came in, for the way out
    hole: [n or 1, 1, h, w] bool, cells that may change
    """

    def __init__(self, noise: Tensor, context: LazyContext, known: Tensor, raw: Tensor, hole: Tensor):
        self.noise, self.context, self.known, self.raw, self.hole = noise, context, known, raw, hole
        self.batches: dict[int, ModelBatch] = {}
        self.prompts: dict[Any, tuple[Any, Tensor]] = {}  # put together as the host batches them
        self.keys: Any = WeakTensorKeyDictionary()  # of those prompts, for every block

    def batch(self, x: Tensor, dtype: torch.dtype) -> ModelBatch:
        """Canvases, holes and contexts for the rows of x."""
        rows = len(x)
        if rows not in self.batches:
            times = rows // len(self.context.tokens)
            known = self.known.to(x).repeat(rows // len(self.known), 1, 1, 1)
            tokens = self.context.tokens.to(dtype).repeat(times, 1, 1)
            self.batches[rows] = ModelBatch(known, self.context.hole.tile(times), tokens)
        return self.batches[rows]


def no_sampling() -> None:
    """What a model answers while it samples nothing."""


class LazyModel(comfy.model_base.BaseModel):
    """Decoder, its sampling and its context encoder, which has a patcher of its own and is loaded only to encode."""

    def __init__(self, model_config: Any, settings: Settings, encoder: Mapping[str, Tensor], device: Any = None):
        self.settings, network = settings, settings.config.network
        kind = comfy.model_base.ModelType
        super().__init__(
            model_config, kind.EPS if settings.config.prediction == "iddpm" else kind.FLOW, device,
            unet_model=partial(HostDecoder, network),
        )  # fmt: skip
        self.fingerprint = fingerprint(settings.config, encoder)
        module = ContextEncoder(network, comfy.ops.manual_cast, HostAttention(), dtype=self.get_dtype())
        try:
            module.load_state_dict(encoder)
        except RuntimeError as error:
            raise CheckpointError(f"the context encoder of this checkpoint is damaged: {error}") from error
        module.eval().requires_grad_(False)
        # A patcher is no module: the encoder is not loaded, saved or counted with the decoder.
        self.encoder = comfy.model_patcher.ModelPatcher(module, mm.get_torch_device(), mm.unet_offload_device())
        self.channel_variance = torch.empty(0, device="meta")
        self.share = 1.0  # of the canvas that is hole, as far as it is known before a run begins
        self.begun: Callable[[], SamplingState | None] = no_sampling  # a weak reference, see `extra_conds`
        self.latents: tuple[Tensor, Tensor] | None = None

    @property
    def run(self) -> SamplingState | None:
        """The sampling in progress."""
        return self.begun()

    @property
    def network(self) -> NetworkConfig:
        return self.settings.config.network

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.manual_cast_dtype or self.get_dtype()

    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = "", *args: Any, **kwargs: Any) -> Any:
        missing = [name for name in self.diffusion_model.state_dict() if unet_prefix + name not in sd]
        if missing:
            raise CheckpointError(f"this checkpoint is damaged: {len(missing)} weights are missing, first {missing[0]}")
        return super().load_model_weights(sd, unet_prefix, *args, **kwargs)

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
        """Errors: ValueError, always: the host would write the decoder alone, which nothing can load."""
        raise ValueError(
            "a LazyDiffusion model cannot be saved by the host's nodes, which know nothing of its context encoder: "
            "keep the file that it was loaded from"
        )

    def memory_required(self, input_shape: Any, *args: Any, **kwargs: Any) -> float:
        running = self.current_patcher is not None and self.run is not None
        share = self.run.context.hole.share if running else self.share  # type: ignore[union-attr]
        return super().memory_required(input_shape, *args, **kwargs) * max(share, 0.02)

    # Encoding

    def context(self, latent: Tensor, visible: Tensor, mask: Tensor, beside: tuple[Any, ...] = ()) -> LazyContext:
        """Encode canvases into a context.

        latent: [B, C, h, w], the canvas as a VAE makes it; visible: the same with mid grey in the hole
        mask: [B, 1, H, W] of zeros and ones, pixels
        beside: patchers that must stay loaded
        Errors: ValueError for latents that are no numbers.
        """
        check_numbers(latent)
        hole = HoleTokens.from_mask(mask, self.network.token)
        canvas = patchify(latent.float(), self.network.patch)
        tokens = latent.new_zeros(len(latent), 0, self.network.width)
        if hole.count:
            device, dtype = self.encoder.load_device, self.compute_dtype
            mm.load_models_gpu([*beside, self.encoder], memory_required=super().memory_required(list(latent.shape)))
            visible = self.latent_format.process_in(visible.to(device)).to(dtype)
            tokens = self.encoder.model(visible, mask.to(device, dtype), hole.to(device)).float()
        home = mm.intermediate_device()
        mask = (mask > 0).to(home)
        return LazyContext(self.fingerprint, hole.to(home), tokens.to(home), canvas.to(home), mask, self.network)

    def check(self, context: LazyContext, height: int, width: int) -> None:
        """Errors: ValueError for a context that this model did not make, or of a canvas of another size (in cells)."""
        if context.model != self.fingerprint:
            raise ValueError("this context was made by another model: encode the canvas again with this one")
        if context.size != (height * self.network.cell, width * self.network.cell):
            cell = self.network.cell
            made, canvas = (f"{x}×{y}" for y, x in (context.size, (height * cell, width * cell)))
            raise ValueError(f"this context was made for {made}, the canvas is {canvas}: encode it again")

    # Sampling, in the order in which the host calls

    def process_latent_in(self, latent: Tensor) -> Tensor:
        processed = super().process_latent_in(latent)
        self.latents = (processed, latent)
        return processed

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Prompts of any length become one length and a mask, so that all of them go through the model together.

        Errors: ValueError for several prompts that are not as many as the masks or pictures.
        """
        noise = kwargs["noise"]
        run = self.run
        if run is None or run.noise is not noise:
            run = self.begin(noise, kwargs.get("latent_image"), kwargs.get("denoise_mask"))
            # Its prompts own it: it goes with the sampling, however that ends.
            self.begun = weakref.ref(run)
        text = kwargs["cross_attn"].to(noise.device)
        if text.shape[-1] != self.network.text_width:
            raise ValueError(
                f"this prompt was made by another text encoder ({text.shape[-1]} numbers a token, the model reads "
                f"{self.network.text_width}): connect the CLIP that belongs to the model"
            )
        check_prompts(len(text), len(run.context.tokens), len(noise))
        missing = max(self.network.text_length - text.shape[1], 0)
        mask = words(text, kwargs.get(MASK))  # of integers: the host would cast a bool mask
        return {
            "c_crossattn": CONDPrompts(F.pad(text, (0, 0, 0, missing)), run.prompts, run),
            "text_mask": CONDPrompts(F.pad(mask, (0, missing)), run.prompts, run),
        }

    def begin(self, noise: Tensor, latent: Tensor | None, mask: Tensor | None) -> SamplingState:
        """The context that was attached to the MODEL, or one of the canvas latent and the latent's noise mask."""
        rows, _, height, width = noise.shape
        known = torch.zeros_like(noise) if latent is None else latent
        raw = self.latents[1] if self.latents is not None and self.latents[0] is known else known
        self.latents = None
        check_numbers(known)
        cells = torch.ones_like(noise[:1, :1], dtype=torch.bool) if mask is None else mask[:, :1] > 0
        context = self.current_patcher.model_options["transformer_options"].get(KEY)
        if context is None:
            context = self.encode_latent(raw, cells)
            side, cell = self.network.canvas, self.network.cell
            if (height * cell, width * cell) != (side, side):
                show(
                    f"this model was made for {side}×{side} px, and the latent is of {width * cell}×{height * cell}: "
                    "with Lazy Context Encode, pictures of any size are fitted to it"
                )
        self.check(context, height, width)
        hole = context.hole.cells(context.network.patch).to(cells.device)
        if mask is None:
            cells = hole
        elif (cells & ~hole.repeat(-(-len(cells) // len(hole)), 1, 1, 1)[: len(cells)]).any():
            raise ValueError("the latent's noise mask covers more than this context's hole: encode with the same mask")
        if rows % len(context.tokens):
            raise ValueError(f"this context is of {len(context.tokens)} canvases, the batch is of {rows} latents")
        device = noise.device
        context = context._replace(hole=context.hole.to(device), tokens=context.tokens.to(device))
        return SamplingState(noise, context, known, raw, cells)

    def encode_latent(self, raw: Tensor, cells: Tensor) -> LazyContext:
        """A context from what stock nodes know, a latent and a mask of its cells."""
        cells = cells.expand(len(raw), -1, -1, -1)
        scaled = self.settings.grey.to(raw)[None, :, None, None]
        grey = self.latent_format.process_out(scaled)
        pixels = repeat(cells.float(), "b 1 h w -> b 1 (h y) (w x)", y=self.network.cell, x=self.network.cell)
        return self.context(raw, torch.where(cells, grey, raw), pixels, beside=(self.current_patcher,))

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        text_mask: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        run = self.run
        if run is None or x.shape[-2:] != run.known.shape[-2:]:
            raise ValueError(
                "a lazy model sees the whole canvas: it cannot be given a part of it (instead of Conditioning (Set "
                "Area) use Conditioning (Set Mask), with set_cond_area “default” and not “mask bounds”)"
            )
        dtype, patch = self.compute_dtype, self.network.patch
        known, hole, tokens = run.batch(x, dtype)
        if not hole.count:
            return known
        decoder: HostDecoder = self.diffusion_model
        decoder.attention.options = transformer_options or {}
        text = self.text_keys(run, c_crossattn, text_mask)
        gate = gate_of(decoder.attention.options, t, hole)
        if gate is not always:
            hole = hole.keep_padding()  # what is kept of a module is a row's own

        def network(z: Tensor, time: Tensor) -> Tensor:
            return decoder(z.to(dtype), time, text, hole, tokens, gate=gate).float()

        try:
            denoised = self.denoise(network, hole.gather(patchify(x.float(), patch)), t)
        finally:
            decoder.attention.options = {}  # they hold on to contexts
        return unpatchify(hole.scatter(denoised, patchify(known, patch)), hole.grid, patch)

    def text_keys(self, run: SamplingState, text: Tensor, mask: Tensor) -> TextKeys:
        """Keys and values of prompts, computed once in a sampling for the prompts that it puts together in a batch."""
        keys: TextKeys | None = run.keys.get(text)
        if keys is None:
            device = run.context.tokens.device
            keys = self.diffusion_model.text_keys(text.to(device, self.compute_dtype), mask.to(device) > 0)
            if self.current_patcher.current_hooks is None:  # else the weights are this prompt's, and may change by step
                run.keys[text] = keys
        return keys

    def denoise(self, network: Callable[[Tensor, Tensor], Tensor], z: Tensor, t: Tensor) -> Tensor:
        """Estimate of the clean tokens [B, n, C·p·p] from noisy ones; t: [B] noise levels as samplers count."""
        scaled, prediction = self.model_sampling.calculate_input(t, z), self.settings.config.prediction
        if prediction != "iddpm":
            return predict_clean(network, scaled, t.float(), self.variance(z.device), prediction)
        predicted = network(scaled, self.model_sampling.timestep(t).float())[..., : z.shape[-1]]
        return self.model_sampling.calculate_denoised(t, predicted, z)

    def variance(self, device: torch.device) -> Tensor:
        """[C·p·p] of the clean tokens' channels, brought to the device once."""
        if self.channel_variance.device != device:
            self.channel_variance = self.settings.variance.repeat_interleave(self.network.patch**2).to(device)
        return self.channel_variance

    def process_latent_out(self, latent: Tensor) -> Tensor:
        """What a sampler returns, with the visible cells bit by bit as they came in."""
        out, run = super().process_latent_out(latent), self.run
        if self.current_patcher is None or run is None or out.shape != run.raw.shape:
            return out
        self.begun = no_sampling
        out = torch.where(run.hole, out, run.raw.to(out))
        return composite_latents(run.raw, out, run.context.mask, self.network.cell)


def check_numbers(latent: Tensor) -> None:
    if not torch.isfinite(latent).all():
        raise ValueError("the latent has values that are not numbers: the step before failed, often a VAE in fp16")


def model_name(model: Any) -> str:
    """What a MODEL of the host's is called: many kinds share one class, and differ in their configuration."""
    name = type(model.model).__name__
    return type(model.model.model_config).__name__ if name == "BaseModel" else name


def lazy_model(model: Any) -> LazyModel:
    """Errors: ValueError for a MODEL that is none of ours, saying what would come of it."""
    if not isinstance(model.model, LazyModel):
        raise ValueError(
            f"this MODEL is a {model_name(model)}: it has no context encoder and would compute the whole "
            "canvas in every step. Connect the MODEL of a Lazy Checkpoint Loader"
        )
    return model.model


def attach_learned(model: Any, context: LazyContext) -> Any:
    """A clone of the MODEL whose samplings are of this context."""
    lazy = lazy_model(model)
    lazy.check(context, *(side // lazy.network.cell for side in context.size))
    model = model.clone()
    model.model_options["transformer_options"][KEY] = context
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    return model


def outer_sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Around a sampling, before any weights are loaded: refuse what does not fit, ask for a hole's share of memory."""
    patcher = executor.class_obj.model_patcher
    model, context = patcher.model, patcher.model_options["transformer_options"][KEY]
    model.check(context, *noise.shape[-2:])
    model.share = context.hole.share
    try:
        return executor(noise, *args, **kwargs)
    finally:
        model.share = 1.0
        model.begun = no_sampling
