"""What a checkpoint says about itself, found again for weights that a stock loader has read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import comfy.latent_formats
import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...lazydiff.model.checkpoint import METADATA, PREFIXES, SHIPPED, CheckpointError, part, read_checkpoint
from ...lazydiff.model.config import ModelConfig
from ...lazydiff.model.latent_space import PatchPCA
from ...lazydiff.model.pixart_weights import read_sizes

FOLDER, GATES_FOLDER = "lazydiffusion", "lazydiffusion_gates"
SIGNATURE = "ctx_fuse.weight"  # the layer that only our decoders have
# Mid grey in the latent space of Stable Diffusion 1: what the context encoder sees instead of the hole.
SD_GREY = (0.8223, -0.6876, 0.6364, 0.1380)


def add_folders() -> None:
    """Let the host list our checkpoints, in our own loader and in its “Load Diffusion Model”, and files of gates."""
    for kind in (FOLDER, GATES_FOLDER):
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
    folder_paths.add_model_folder_path(FOLDER, str(SHIPPED.parent))
    for folder in folder_paths.get_folder_paths(FOLDER):
        folder_paths.add_model_folder_path("diffusion_models", folder)
    for kind in (FOLDER, GATES_FOLDER):
        # A new kind of folder lists every file until it is told which ones are models.
        paths, _ = folder_paths.folder_names_and_paths[kind]
        folder_paths.folder_names_and_paths[kind] = (paths, {".safetensors"})


class PatchLatent(comfy.latent_formats.LatentFormat):
    """The latent format of a patch-PCA latent space; previews show the mean colour of each patch."""

    scale_factor = 1.0

    def __init__(self, latent: PatchPCA):
        colours = (latent.basis / latent.scale[:, None]).unflatten(1, (3, -1)).mean(-1)
        self.latent_channels = len(colours)
        self.spacial_downscale_ratio = latent.cell
        self.latent_rgb_factors = colours.tolist()
        self.latent_rgb_factors_bias = latent.mean.unflatten(0, (3, -1)).mean(-1).tolist()


class Settings(NamedTuple):
    """What the networks need to know beside their weights."""

    config: ModelConfig
    latent_format: comfy.latent_formats.LatentFormat
    variance: Tensor  # [C] of the latent's channels
    grey: Tensor  # [C], the latent of mid grey

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Settings:
        """Of decoder weights, with the encoder's under `encoder.`, as stock loaders hand them on.

        The loaders hand on nothing else of a checkpoint, so the file is looked up again. A file that does not describe
        itself is taken for one of PixArt-α's published shapes.
        Errors: `CheckpointError` when the encoder is missing.
        """
        if "encoder.norm.weight" not in weights:
            raise CheckpointError("this checkpoint has a lazy decoder and no context encoder: it cannot see a canvas")
        for path in checkpoints():
            if holds(path, weights):
                settings = cls.read(path)
                if settings.config.network.dense:
                    raise CheckpointError(f"{path.name} computes every token: it is a baseline of the evaluation's")
                return settings
        logging.info("Lazy Diffusion: no description found for these weights, taken for PixArt-α's shape")
        config = ModelConfig(read_sizes(weights), "iddpm")
        return cls(config, comfy.latent_formats.SD15(), torch.ones(config.network.channels), torch.tensor(SD_GREY))

    @classmethod
    def read(cls, path: Path) -> Settings:
        config, tensors = read_checkpoint(path)
        if "latent.basis" not in tensors:
            return cls(config, comfy.latent_formats.SD15(), torch.ones(config.network.channels), torch.tensor(SD_GREY))
        latent = read_latent(config, tensors)
        token = latent.encode(torch.zeros(1, 3, latent.cell, latent.cell))
        return cls(config, PatchLatent(latent), latent.variance, token[0, :, 0, 0])


def read_latent(config: ModelConfig, tensors: Mapping[str, Tensor]) -> PatchPCA:
    latent = PatchPCA(config.network.channels, config.network.cell, config.clean_up)
    latent.load_state_dict(part(tensors, "latent."))
    return latent


def checkpoints() -> Iterator[Path]:
    """Every file that a diffusion model can be loaded from, ours first."""
    for folder in (FOLDER, "diffusion_models", "checkpoints"):
        for name in folder_paths.get_filename_list(folder):
            if name.endswith(".safetensors") and (path := folder_paths.get_full_path(folder, name)):
                yield Path(path)


def holds(path: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether a file describes itself as one of ours and these weights came from it, all of them: others that were
    trained from the same beginning may share some."""
    try:
        with safe_open(path, framework="pt") as file:
            if METADATA not in (file.metadata() or {}):
                return False
            return all(same(file.get_tensor(PREFIXES["decoder."] + name), ours) for name, ours in weights.items())
    except (SafetensorError, OSError):
        return False  # whoever asks for this very file is told what is wrong with it


def same(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and torch.equal(theirs.float(), ours.float().cpu())
