"""The host's VAE as a canvas uses it: lazily if it is one of Stable Diffusion's kind, else by its own methods."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.models.autoencoder import AutoencodingEngine, AutoencodingEngineLegacy, DiagonalGaussianRegularizer
from torch import Tensor

from ...lazydiff.core.masks import to_grid
from ...lazydiff.pipeline.canvas import Canvas, edit_canvas, open_canvas
from ...lazydiff.pipeline.decode import Blend
from ...lazydiff.pipeline.encode import size_text
from ...lazydiff.vae.canvas_vae import CanvasVAE, Half, LazyVAE, PassCache, VAEOutput
from ...lazydiff.vae.lazy_vae import LIMIT
from ...lazydiff.vae.passes import Statistics, VAEState
from ...lazydiff.vae.stages import decoder_stages, encoder_stages
from .encode import encode_each
from .progress import counted

MEMORIES: weakref.WeakKeyDictionary[torch.nn.Module, dict[Half, PassCache]] = weakref.WeakKeyDictionary()


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

    def encode(self, image: Tensor, whole: bool = False) -> VAEOutput:
        return VAEOutput(encode_each(self.host, image.movedim(1, -1)))

    def decode(self, latent: Tensor, whole: bool = False) -> VAEOutput:
        images = self.host.decode(latent)
        return VAEOutput(images.reshape(-1, *images.shape[-3:]).movedim(-1, 1)[:, :3])  # a video's are of one frame each


class HostLazyVAE(LazyVAE):
    """With the host's memory management; what is remembered waits in main memory."""

    def __init__(self, vae: Any):
        super().__init__(vae.first_stage_model)
        self.host = vae
        self.passes = MEMORIES.setdefault(self.vae, self.passes)

    def encode(self, image: Tensor, whole: bool = False) -> VAEOutput:
        try:
            done = super().encode(image, whole)
            return done._replace(output=done.output.float())
        except Exception as error:
            raise_unless_out_of_memory(error)
        return HostVAE(self.host).encode(image)

    def decode(self, latent: Tensor, whole: bool = False) -> VAEOutput:
        latent = latent[:, :, 0] if latent.ndim == 5 else latent
        try:
            return super().decode(latent, whole)
        except Exception as error:
            raise_unless_out_of_memory(error)
        return HostVAE(self.host).decode(latent)

    def run(self, half: Half, x: Tensor, old: VAEState | None, changed: Tensor | None, share: float) -> VAEState:
        host, network = self.host, getattr(self.vae, f"{half}r")
        needed = getattr(host, f"memory_used_{half}")(x.shape, host.vae_dtype)
        mm.load_models_gpu([host.patcher], memory_required=needed * share, force_full_load=host.disable_offload)
        convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
        with counted(convolutions, comfy.utils.ProgressBar(len(convolutions))):
            old = None if old is None else moved(old, host.device)
            state = super().run(half, x.to(host.device, host.vae_dtype), old, changed, share)
        return moved(state, mm.intermediate_device())


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


def edit_with(canvas: Canvas, samples: Tensor, mask: Tensor, blend: Blend) -> Canvas:
    """The canvas with sampled latents in its holes; mask: [B, 1, H, W]"""
    if samples.ndim > canvas.latent.ndim:  # models of videos make frames of pictures
        samples = samples[:, :, 0]
    return edit_canvas(canvas, samples, mask.float(), blend)


def decode_hole(
    vae: Any, latent: Tensor, mask: Tensor, canvas: Tensor, whole: bool
) -> tuple[Tensor, CanvasVAE, float | None]:
    """Pictures [B, H, W, 3] of latents in and next to the hole, elsewhere the canvas's; and what that took.

    mask: [B, H, W] or [B, 1, H, W]; whole: decode all, whatever is remembered
    """
    space = canvas_vae(vae)
    decoded = space.decode(latent, whole=whole)
    mask = mask.reshape(-1, 1, *mask.shape[-2:]) > 0.5
    image = pasted(decoded.output, canvas[..., :3].movedim(-1, 1), mask, latent.shape[-1])
    return image.movedim(1, -1), space, decoded.planned


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


def work(vae: CanvasVAE, planned: float | None) -> str:
    """What a decode has computed, in words."""
    if not vae.lazy:
        return "full decode: this VAE cannot be run in part"
    if planned is None:
        return "full decode: no earlier one of a picture of this size is remembered"
    if planned > LIMIT:
        return f"full decode: what has changed and all around it would have been {planned:.0%} of the work"
    return f"lazy decode: {planned:.0%} of the work of a full one"
