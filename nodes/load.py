"""Loading."""

from __future__ import annotations

import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..lazydiff.model.checkpoint import SHIPPED, VOCABULARY, CheckpointError, read_checkpoint
from .host.clip import load_clip
from .host.settings import FOLDER, read_latent
from .host.vae import PatchVAE
from .inputs import node_schema


class LazyCheckpointLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = sorted(folder_paths.get_filename_list(FOLDER), key=lambda name: (name != SHIPPED.name, name))
        return node_schema(
            "LazyCheckpointLoader",
            "Lazy Checkpoint Loader",
            description="A LazyDiffusion model with its own text encoder and latent space. The one that comes with "
            "the pack needs no download.",
            aliases=["lazy diffusion", "load lazy model"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=names,
                    default=SHIPPED.name,
                    tooltip="A file in models/lazydiffusion, or the one that comes with the pack.",
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="For LazyContextEncode, and for any sampler."),
                io.Clip.Output("CLIP", tooltip="For CLIP Text Encode."),
                io.Vae.Output("VAE", tooltip="For VAE Encode and VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise(FOLDER, checkpoint)
        config, tensors = read_checkpoint(path)
        if VOCABULARY not in tensors:
            raise CheckpointError(
                f"{checkpoint} has no text encoder and no latent space of its own: load it with Load Diffusion Model, "
                "and T5 and VAE with Load CLIP (type pixart) and Load VAE"
            )
        model = comfy.sd.load_diffusion_model(path)
        return io.NodeOutput(model, load_clip(config, tensors), PatchVAE(read_latent(config, tensors)))
