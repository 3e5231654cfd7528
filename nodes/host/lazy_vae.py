"""The host's VAE as a canvas uses it: lazily if it is one of Stable Diffusion's kind, else by its own methods."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.models.autoencoder import AutoencodingEngine, AutoencodingEngineLegacy, DiagonalGaussianRegularizer
from torch import Tensor

from ...lazydiff.cache.kv_context import KVContext
from ...lazydiff.core.masks import to_grid
from ...lazydiff.model.context import LazyContext
from ...lazydiff.pipeline.canvas import Canvas, edit_canvas, edit_pixels, open_canvas
from ...lazydiff.pipeline.decode import Blend
from ...lazydiff.pipeline.encode import size_text
from ...lazydiff.vae.canvas_vae import CanvasVAE, EarlierPass, Half, LazyVAE, VAEOutput
from ...lazydiff.vae.lazy_vae import LIMIT
from ...lazydiff.vae.passes import Statistics, VAEState
from ...lazydiff.vae.stages import decoder_stages, encoder_stages
from .contexts import whole_canvas
from .encode import encode_each, fit_text
from .progress import counted

KEPT = 2  # canvases whose decode is remembered, some 100 MB each at 1024 px
# Of a VAE's network: those canvases; and what the newest pass has left, in main memory and on the device.
CANVASES: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()
NEWEST: weakref.WeakKeyDictionary[torch.nn.Module, dict[Half, Any]] = weakref.WeakKeyDictionary()


def canvas_vae(vae: Any) -> CanvasVAE:
    return HostLazyVAE(vae) if can_be_lazy(vae) else HostVAE(vae)


def can_be_lazy(vae: Any) -> bool:
    """Whether a VAE is its `encoder`, its `decoder` and nothing else between pixels in -1…1 and latents."""
    network = getattr(vae, "first_stage_model", None)
    if not isinstance(network, AutoencodingEngine) or vae.latent_dim != 2 or getattr(network, "bn", None) is not None:
        return False
    known = (AutoencodingEngine, AutoencodingEngineLegacy)
    regular = network.regularization
    ends = torch.tensor([0.0, 1.0])
    own = [getattr(type(network), name) not in [getattr(each, name) for each in known] for name in ("encode", "decode")]
    if any(own) or type(regular) is not DiagonalGaussianRegularizer or regular.sample:
        return False
    if vae.process_input(ends).tolist() != [-1, 1] or vae.process_output(ends * 2 - 1).tolist() != [0, 1]:
        return False
    try:
        return bool(decoder_stages(network) and encoder_stages(network))
    except (AttributeError, ValueError):
        return False


class HostVAE:
    """By the VAE's own methods, whatever it is: of pictures, of videos, of pixels."""

    lazy = False

    def __init__(self, vae: Any):
        self.host = vae

    def encode(self, image: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        return VAEOutput(encode_each(self.host, image.movedim(1, -1)))

    def decode(self, latent: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        images = self.host.decode(latent)
        return VAEOutput(images.reshape(-1, *images.shape[-3:]).movedim(-1, 1)[:, :3])  # a video's: of one frame each


class HostLazyVAE(LazyVAE):
    """With the host's memory management. What an earlier pass has left waits in main memory; the newest one's stays on
    the device as well, so that a chain of edits need not bring it there again."""

    def __init__(self, vae: Any):
        super().__init__(vae.first_stage_model)
        self.host = vae

    def encode(self, image: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        try:
            done = super().encode(image, earlier)
            return done._replace(output=done.output.float())
        except Exception as error:
            raise_unless_out_of_memory(error)
        return HostVAE(self.host).encode(image)

    def decode(self, latent: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        latent = latent[:, :, 0] if latent.ndim == 5 else latent
        try:
            return super().decode(latent, earlier)
        except Exception as error:
            raise_unless_out_of_memory(error)
        return HostVAE(self.host).decode(latent)

    def run(self, half: Half, x: Tensor, old: VAEState | None, changed: Tensor | None, share: float) -> VAEState:
        host, network = self.host, getattr(self.vae, f"{half}r")
        needed = getattr(host, f"memory_used_{half}")(x.shape, host.vae_dtype)
        mm.load_models_gpu([host.patcher], memory_required=needed * share, force_full_load=host.disable_offload)
        convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
        newest = NEWEST.setdefault(self.vae, {})
        with counted(convolutions, comfy.utils.ProgressBar(len(convolutions))):
            if old is not None:
                waiting, there = newest.get(half, (None, None))
                old = there if waiting is not None and old.output is waiting.output else moved(old, host.device)
            state = super().run(half, x.to(host.device, host.vae_dtype), old, changed, share)
        waiting = moved(state, mm.intermediate_device())
        newest[half] = waiting, state
        return waiting


def moved(state: VAEState, device: torch.device) -> VAEState:
    def there(x: Tensor) -> Tensor:
        return x.to(device)

    statistics = tuple(Statistics(*map(there, one)) for one in state.statistics)
    return VAEState(there(state.output), statistics, tuple(map(there, state.keys)), tuple(map(there, state.values)))


def raise_unless_out_of_memory(error: Exception) -> None:
    known = mm.is_oom(error) if hasattr(mm, "is_oom") else isinstance(error, torch.cuda.OutOfMemoryError)
    if not known:
        raise error
    logging.warning("Lazy Diffusion: out of memory with the VAE, which goes on by its own means (in tiles if need be)")


def open_with(vae: Any, image: Tensor) -> Canvas:
    """A canvas of pictures [B, H, W, 3]. Errors: ValueError for pictures that are no numbers."""
    if not torch.isfinite(image).all():
        raise ValueError("the image has values that are not numbers: the step before failed")
    return open_canvas(canvas_vae(vae), image[..., :3].movedim(-1, 1))


def edit_with(canvas: Canvas, samples: Tensor, context: LazyContext | KVContext, blend: Blend) -> Canvas:
    """The canvas with sampled latents in its context's holes."""
    if isinstance(context, LazyContext) and context.fitted is not None:
        fit, mask = context.fitted
        picture = HostVAE(canvas.vae.host).decode(samples).output
        return edit_pixels(canvas, fit.from_model(picture, canvas.image), mask.float(), blend)
    if samples.ndim > canvas.latent.ndim:  # models of videos make frames of pictures
        samples = samples[:, :, 0]
    return edit_canvas(canvas, samples, context.mask.float(), blend)


def decode_hole(
    vae: Any, latent: Tensor, hole: Tensor | LazyContext | KVContext, canvas: Tensor, whole: bool
) -> tuple[Tensor, str]:
    """Pictures [B, H, W, 3] of latents in and next to the hole, elsewhere the canvas's; and in words what that took.

    hole: a mask [B, H, W], or the context, whose canvas's own decode is what a lazy one goes on from; whole: no such
    """
    space, picture = canvas_vae(vae), canvas[..., :3].movedim(-1, 1)
    if isinstance(hole, LazyContext) and hole.fitted is not None:
        decoded = HostVAE(vae).decode(latent).output
        return unfitted(decoded, picture, hole).movedim(1, -1), fit_text(hole.fitted.fit)
    earlier: Sequence[EarlierPass] = ()
    mask = hole
    if not isinstance(hole, Tensor):
        mask = hole.mask
        earlier = () if whole or not space.lazy else decoded_canvas(space, whole_canvas(hole)[0])
    done = space.decode(latent, earlier)
    mask = mask.reshape(-1, 1, *mask.shape[-2:]) > 0.5
    image = pasted(done.output, picture, mask, latent.shape[-1])
    return image.movedim(1, -1), "full decode, as chosen" if whole else work_text(space, done.planned)


def decoded_canvas(space: CanvasVAE, latent: Tensor) -> Sequence[EarlierPass]:
    """The decode of a context's canvas, computed once: what is remembered of it is what would be computed again."""
    remembered = CANVASES.setdefault(space.vae, deque(maxlen=KEPT))
    for known, passes in remembered:
        if known.shape == latent.shape and torch.equal(known, latent):
            return passes
    passes = space.decode(latent).passes
    if passes:
        remembered.append((latent, passes))
    return passes


def unfitted(decoded: Tensor, picture: Tensor, context: LazyContext) -> Tensor:
    """Pictures [B, 3, H, W] of any size with what a model of one size made of their holes, and a little around them."""
    fit, rows = context.fitted.fit, len(decoded)
    if size_text(picture) != (size := f"{fit.canvas[1]}×{fit.canvas[0]}"):
        raise ValueError(f"the canvas is {size_text(picture)}, and the context was made of {size}: give that picture")
    picture = picture.repeat(rows // len(picture), 1, 1, 1)
    near = F.max_pool2d(context.mask.to(decoded), 3, 1, 1).repeat(rows // len(context.mask), 1, 1, 1)
    near = fit.from_model(near, torch.zeros_like(picture[:, :1]))
    return torch.where(near > 0, fit.from_model(decoded, picture), picture)


def pasted(decoded: Tensor, picture: Tensor, mask: Tensor, cells: int) -> Tensor:
    """Pictures with decodes in the latent cells, so many of them side by side, that masks touch or are next to."""
    sizes = {"latents": size_text(decoded), "canvas": size_text(picture), "mask": size_text(mask)}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"the {name} {size}" for name, size in sizes.items())
        raise ValueError(f"these are of different size: {told}. Give the canvas and the mask that were sampled on")
    rows = len(decoded)
    if rows % len(picture) or rows % len(mask):
        raise ValueError(f"there are {rows} latents, {len(picture)} pictures and {len(mask)} masks: give one picture "
                         "and one mask, or as many as there are latents")  # fmt: skip
    cell = decoded.shape[-1] // cells
    near = F.interpolate(to_grid(F.max_pool2d(mask.to(decoded), 3, 1, 1), cell), scale_factor=cell)
    picture, near = (each.repeat(rows // len(each), 1, 1, 1) for each in (picture, near))
    return torch.where(near > 0, decoded.to(picture), picture)


def work_text(vae: CanvasVAE, planned: float | None) -> str:
    """What a decode has computed, in words."""
    if not vae.lazy:
        return "full decode: this VAE cannot be run in part"
    if planned is None:
        return "full decode: give the context as hole, and only what was sampled is decoded"
    if planned > LIMIT:
        return f"full decode: what has changed and all around it would have been {planned:.0%} of the work"
    return f"lazy decode: {planned:.0%} of the work of a full one"
