"""A narrow UNet of Stable Diffusion 1.5's architecture that inpaints the built-in scenes, for `train_unet.py`.

It is given what inpainting checkpoints are: the noisy latents, the mask, and the latents of what may be seen. Its
latent space is a linear one of 4×4 px; its words come from the text encoder of the laboratory's small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from lazydiff.core.masks import to_grid
from lazydiff.core.tokens import patchify, unpatchify
from lazydiff.evaluation.laboratory import SMALL
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.latent_space import PatchPCA
from lazydiff.sampling.flow import Network
from lazydiff.scenes import CANVAS

CELL, CHANNELS = 4, 16
GRID = (CANVAS // CELL, CANVAS // CELL)
ARCHITECTURE: dict[str, Any] = {
    "sample_size": GRID[0], "in_channels": 2 * CHANNELS + 1, "out_channels": CHANNELS, "cross_attention_dim": 96,
    "block_out_channels": (32, 64, 128, 128), "norm_num_groups": 8, "attention_head_dim": 2, "layers_per_block": 2,
}  # fmt: skip


class SceneUNet(nn.Module):
    """The UNet between its latent space and its text encoder; the latter is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**ARCHITECTURE)
        self.latent = PatchPCA(CHANNELS, CELL)
        self.text = load_checkpoint(SMALL).text.requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> SceneUNet:
        """A trained one in float32, for inference."""
        model = cls()
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
        left = model.load_state_dict(weights, strict=False)
        assert not left.unexpected_keys and all(name.startswith("text.") for name in left.missing_keys)
        return model.eval().requires_grad_(False)

    @property
    def trained(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("text.")}

    @property
    def variance(self) -> Tensor:
        return self.latent.variance

    def seen(self, image: Tensor, mask: Tensor) -> Tensor:
        """The mask's cells and the visible latents [B, 1 + C, h, w] of images [B, 3, H, W] in -1…1."""
        return torch.cat((to_grid(mask, CELL), self.latent.encode(image * (1 - mask))), 1)

    def bound(self, seen: Tensor, prompts: Sequence[str]) -> Network:
        """The network of a batch of canvases, one prompt each: cells [B, N, C] as tokens, and noise levels."""
        with torch.no_grad():
            text, words = self.text(prompts)

        def network(x: Tensor, t: Tensor) -> Tensor:
            x = torch.cat((unpatchify(x, GRID, 1), seen), 1)
            return patchify(self.unet(x, t, text, encoder_attention_mask=words).sample, 1)

        return network
