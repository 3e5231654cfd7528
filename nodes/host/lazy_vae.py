"""The host's VAE as a canvas uses it: lazily if it is one of Stable Diffusion's kind, else by its own methods."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine, AutoencodingEngineLegacy, DiagonalGaussianRegularizer
from torch import Tensor

from ...lazydiff.vae.canvas_vae import CanvasVAE, Half, LazyVAE, PassCache, VAEOutput
from ...lazydiff.vae.lazy_vae import LIMIT
from ...lazydiff.vae.passes import Statistics, VAEState
from ...lazydiff.vae.stages import decoder_stages, encoder_stages
from .contexts import encode_each
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
        self.memory = MEMORIES.setdefault(self.vae, self.memory)

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


def work(vae: CanvasVAE, planned: float | None) -> str:
    """What a decode has computed, in words."""
    if not vae.lazy:
        return "full decode: this VAE cannot be run in part"
    if planned is None:
        return "full decode: no earlier one of a picture of this size is remembered"
    if planned > LIMIT:
        return f"full decode: what has changed and all around it would have been {planned:.0%} of the work"
    return f"lazy decode: {planned:.0%} of the work of a full one"
