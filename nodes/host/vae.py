"""A patch-PCA latent space as a VAE socket."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import torch

from ...lazydiff.model.latent_space import PatchPCA


class PatchVAE(comfy.sd.VAE):
    """The host's VAE around a linear latent space, with its own tiling, batching and memory management.

    The host's own constructor recognises networks by their weights and cannot know this one, so what it would have set
    is set here, for all supported releases.
    """

    def __init__(self, latent: PatchPCA):
        self.first_stage_model = latent.eval().requires_grad_(False)
        self.latent_channels = len(latent.scale)
        self.latent_dim, self.output_channels = 2, 3
        self.downscale_ratio = self.upscale_ratio = latent.cell
        self.downscale_index_formula = self.upscale_index_formula = None
        self.memory_used_encode = lambda shape, dtype: 40 * shape[2] * shape[3]
        self.memory_used_decode = lambda shape, dtype: 40 * shape[2] * shape[3] * latent.cell**2
        self.process_input = lambda image: image * 2 - 1
        self.process_output = lambda image: image.add_(1).div_(2).clamp_(0, 1)  # 0.33 uses what it does in place
        self.working_dtypes = [torch.float32]
        self.disable_offload = True  # it is a few kilobytes
        self.crop_input, self.not_video = True, False
        self.extra_1d_channel = self.pad_channel_value = self.format_encoded = None
        self.handles_tiling = False
        self.audio_sample_rate = 44100
        self.device, self.vae_dtype = mm.vae_device(), torch.float32
        self.output_device = mm.intermediate_device()
        self.size = mm.module_size(latent)
        self.patcher = comfy.model_patcher.ModelPatcher(latent, self.device, mm.vae_offload_device())
