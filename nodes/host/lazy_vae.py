"""The host's VAE as a canvas uses it: lazily if it is one of Stable Diffusion's kind, else by its own methods."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.models.autoencoder import AutoencodingEngine, AutoencodingEngineLegacy, DiagonalGaussianRegularizer
from torch import Tensor

from ...lazydiff.cache.kv_context import KVContext
from ...lazydiff.core.colours import match_colours
from ...lazydiff.core.masks import to_grid
from ...lazydiff.core.transfer import to_device, to_main_memory
from ...lazydiff.model.context import LazyContext
from ...lazydiff.pipeline.canvas import Canvas, check_rows_of, edit_canvas, edit_pixels, open_canvas
from ...lazydiff.pipeline.decode import Blend
from ...lazydiff.pipeline.encode import size_text
from ...lazydiff.pipeline.fit import Fit, Fitted
from ...lazydiff.vae.canvas_vae import CanvasVAE, EarlierPass, Half, LazyVAE, VAEOutput, work_share
from ...lazydiff.vae.lazy_vae import LIMIT, Plan
from ...lazydiff.vae.passes import Statistics, VAEState
from ...lazydiff.vae.stages import decoder_stages, encoder_stages
from .contexts import whole_canvas
from .device import raise_unless_out_of_memory
from .encode import encode_each
from .progress import counted

KEPT = 2  # canvases whose decode is remembered, some 100 MB each at 1024 px; as many passes of each half on the device
# Of a VAE's network: those canvases; and of its halves, what the last passes have left, in main memory and on the
# device, the last used last. (A canvas's encode is used twice: for what a model may see, and for the next canvas.)
CANVASES: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()
NEWEST: weakref.WeakKeyDictionary[torch.nn.Module, dict[Half, LastPasses]] = weakref.WeakKeyDictionary()
OWN_MEANS = "the VAE goes on by its own means, in tiles if need be"


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
        self.host, self.cell = vae, int(vae.spacial_compression_encode())

    def encode(self, image: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        return VAEOutput(encode_each(self.host, image.movedim(1, -1)))

    def decode(self, latent: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        images = self.host.decode(latent)
        pictures = images.reshape(-1, *images.shape[-3:]).movedim(-1, 1)[:, :3]  # a video's: of one frame each
        return VAEOutput(pictures.to(mm.get_torch_device()))


class HostLazyVAE(LazyVAE):
    """With the host's memory management. What an earlier pass has left waits in main memory; that of the last ones
    stays on the device as well, so that a chain of edits need not bring it there again."""

    def __init__(self, vae: Any):
        super().__init__(vae.first_stage_model)
        self.host = vae

    def encode(self, image: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        try:
            done = super().encode(image, earlier)
            return done._replace(output=done.output.float().to(mm.intermediate_device()))
        except Exception as error:
            raise_unless_out_of_memory(error, OWN_MEANS)
        return HostVAE(self.host).encode(image)

    def decode(self, latent: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        latent = latent[:, :, 0] if latent.ndim == 5 else latent
        try:
            return super().decode(latent, earlier)
        except Exception as error:
            raise_unless_out_of_memory(error, OWN_MEANS)
        return HostVAE(self.host).decode(latent)

    def place(self, half: Half) -> tuple[torch.device, torch.dtype]:
        return self.host.device, self.host.vae_dtype

    def one(self, half: Half, x: Tensor, earlier: EarlierPass | None) -> VAEOutput:
        last = NEWEST.setdefault(self.vae, {}).setdefault(half, LastPasses())
        if earlier is not None:
            waiting = earlier.state
            state = last.get(waiting) or moved(waiting, partial(to_device, device=self.host.device))
            last.put(waiting, state)
            earlier = earlier._replace(state=state)
        done = super().one(half, x, earlier)
        state = done.passes[0].state
        waiting = moved(state, to_main_memory)
        last.put(waiting, state)
        return done._replace(passes=(EarlierPass(x, waiting),))

    def run(self, half: Half, x: Tensor, old: VAEState | None, plan: Plan | None) -> VAEState:
        host, network = self.host, getattr(self.vae, f"{half}r")
        needed = getattr(host, f"memory_used_{half}")(x.shape, host.vae_dtype)
        needed *= work_share(plan and plan.share)
        mm.load_models_gpu([host.patcher], memory_required=needed, force_full_load=host.disable_offload)
        convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
        with counted(convolutions, comfy.utils.ProgressBar(len(convolutions))):
            return super().run(half, x, old, plan)


class LastPasses:
    """The device's copies of states that wait in main memory, of the last ones used."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[VAEState, VAEState]] = {}  # with the waiting ones, so that no others take their ids

    def get(self, waiting: VAEState) -> VAEState | None:
        return self.kept.get(id(waiting.output), (None, None))[1]

    def put(self, waiting: VAEState, state: VAEState) -> None:
        self.kept.pop(id(waiting.output), None)
        self.kept[id(waiting.output)] = waiting, state
        if len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]


def moved(state: VAEState, there: Callable[[Tensor], Tensor]) -> VAEState:
    statistics = tuple(Statistics(*map(there, one)) for one in state.statistics)
    return VAEState(there(state.output), statistics, tuple(map(there, state.keys)), tuple(map(there, state.values)))


def open_with(vae: Any, image: Tensor) -> Canvas:
    """A canvas of pictures [B, H, W, 3]. Errors: ValueError for pictures that are no numbers."""
    if not torch.isfinite(image).all():
        raise ValueError("the image has values that are not numbers: the step before failed")
    return open_canvas(canvas_vae(vae), image[..., :3].movedim(-1, 1))


def edit_with(
    canvas: Canvas, samples: Tensor, context: LazyContext | KVContext, blend: Blend
) -> tuple[Canvas, str]:
    """The canvas with sampled latents in its context's holes; and in words what that took."""
    fitted = context.fitted
    mask = context.mask if fitted is None else fitted.holes
    if fitted is not None and fitted.fit.scaled:
        check_rows_of(canvas, len(samples), mask)
        made = fitted.fit.from_model(decoded_fit(canvas.vae.host, samples, context), canvas.image)
        return edit_pixels(canvas, made, mask.float(), blend), unfitted_text(fitted.fit)
    if samples.ndim > canvas.latent.ndim:  # models of videos make frames of pictures
        samples = samples[:, :, 0]
    canvas = edit_canvas(canvas, samples, mask.float(), blend)
    return canvas, work_text(canvas.vae, canvas.planned, "there is no earlier one to go on from")


def decoded_fit(vae: Any, samples: Tensor, context: LazyContext | KVContext) -> Tensor:
    """Pictures [B, 3, H, W] of what was sampled for a fitted canvas, as its model saw it."""
    check_latents_of(context, samples)
    return HostVAE(vae).decode(samples).output


def check_latents_of(context: LazyContext | KVContext, samples: Tensor) -> None:
    """Errors: ValueError for latents of another size than a context's."""
    own = whole_canvas(context)[0]
    if samples.shape[-2:] != own.shape[-2:]:
        raise ValueError(f"the latents are {size_text(samples)}, this context's {size_text(own)}: sample on it")


def decode_hole(
    vae: Any, latent: Tensor, hole: Tensor | LazyContext | KVContext, canvas: Tensor, whole: bool,
    match: bool = False,
) -> tuple[Tensor, str]:  # fmt: skip
    """Pictures [B, H, W, 3] of latents in and next to the hole, elsewhere the canvas's; and in words what that took.

    hole: a mask [B, H, W], or the context, whose canvas's own decode is what a lazy one goes on from; whole: no such
    match: the canvas's colours around the hole
    """
    space, picture = canvas_vae(vae), canvas[..., :3].movedim(-1, 1)
    earlier: Sequence[EarlierPass] = ()
    fitted = None
    if not isinstance(hole, Tensor):
        check_latents_of(hole, latent)
        fitted = hole.fitted
        earlier = () if whole or not space.lazy else decoded_canvas(space, whole_canvas(hole)[0])
    done = space.decode(latent, earlier)
    text = "full decode, as chosen" if whole else work_text(
        space, done.planned, "give the context as hole, and only what was sampled is decoded"
    )  # fmt: skip
    if fitted is not None:
        return unfitted(done.output, canvas[..., :3], fitted, match), f"{text}; {unfitted_text(fitted.fit)}"
    mask = hole if isinstance(hole, Tensor) else hole.mask
    mask = mask.reshape(-1, 1, *mask.shape[-2:]) > 0.5
    return pasted(done.output, picture, mask, latent.shape[-1], match).movedim(1, -1), text


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


def unfitted(decoded: Tensor, picture: Tensor, fitted: Fitted, match: bool) -> Tensor:
    """Pictures [B, H, W, 3] of any size with what a model made of their holes, [B, 3, h, w], and a pixel around them.
    Beside the result, time and memory are those of the region that was looked at."""
    fit, rows = fitted.fit, len(decoded)
    if (given := size_text(picture.movedim(-1, 1))) != (size := f"{fit.canvas[1]}×{fit.canvas[0]}"):
        raise ValueError(f"the canvas is {given}, and the context was made of {size}: give that picture")
    check_numbers_of(rows, len(picture), len(fitted.mask))
    mask = fitted.mask.to(decoded).repeat(rows // len(fitted.mask), 1, 1, 1)
    picture = picture.repeat(rows // len(picture), 1, 1, 1)
    region = fit.region.of(picture.movedim(-1, 1))
    made = fit.from_model(decoded).to(picture)
    made = match_colours(made, region, mask.to(made)).clamp(0, 1) if match else made
    region.copy_(torch.where(F.max_pool2d(mask, 3, 1, 1).to(made) > 0, made, region))
    return picture


def unfitted_text(fit: Fit) -> str:
    """What that was, in words."""
    height, width = fit.canvas
    done = "the hole is scaled back to the picture's" if fit.scaled else "the picture is cut back to its"
    return f"{done} {width}×{height} px"


def pasted(decoded: Tensor, picture: Tensor, mask: Tensor, cells: int, match: bool) -> Tensor:
    """Pictures with decodes in the latent cells, so many of them side by side, that masks touch or are next to."""
    sizes = {"latents": size_text(decoded), "canvas": size_text(picture), "mask": size_text(mask)}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"the {name} {size}" for name, size in sizes.items())
        raise ValueError(f"these are of different size: {told}. Give the canvas and the mask that were sampled on, or "
                         "the context as hole")  # fmt: skip
    rows = len(decoded)
    check_numbers_of(rows, len(picture), len(mask))
    cell, decoded = decoded.shape[-1] // cells, decoded.to(picture)
    near = F.interpolate(to_grid(F.max_pool2d(mask.to(decoded), 3, 1, 1), cell), scale_factor=cell)
    picture, near, mask = (each.repeat(rows // len(each), 1, 1, 1) for each in (picture, near, mask))
    decoded = match_colours(decoded, picture, mask).clamp(0, 1) if match else decoded
    return torch.where(near > 0, decoded, picture)


def check_numbers_of(latents: int, pictures: int, masks: int) -> None:
    if latents % pictures or latents % masks:
        raise ValueError(f"there are {latents} latents, {pictures} pictures and {masks} masks: give one picture "
                         "and one mask, or as many as there are latents")  # fmt: skip


def work_text(vae: CanvasVAE, planned: float | None, why: str) -> str:
    """What a decode has computed, in words; why: there was nothing to go on from"""
    if not vae.lazy:
        return "full decode: this VAE cannot be run in part"
    if planned is None:
        return f"full decode: {why}"
    if planned > LIMIT:
        return f"full decode: what has changed and all around it would have been {planned:.0%} of the work"
    return f"lazy decode: {planned:.0%} of the work of a full one"
