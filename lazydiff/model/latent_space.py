"""Latent spaces: how pixels become the numbers that are denoised, and back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from einops import einsum, rearrange
from torch import Tensor, nn


class LatentSpace(Protocol):
    """Images [B, 3, H, W] in -1…1 <-> latents [B, C, H/cell, W/cell]."""

    cell: int  # px
    variance: Tensor  # [C] of the latents of ordinary pictures

    def encode(self, image: Tensor) -> Tensor: ...

    def decode(self, latent: Tensor) -> Tensor: ...


class CleanUp(nn.Module):
    """Convolutions that hide the borders of cells and the grain in them: pictures [B, 3, H, W] in -1…1 -> the same.

    A pixel of theirs is a cell with all its pixels as channels, so that they know where its borders are; they see three
    cells far. At first they change nothing.
    """

    def __init__(self, width: int, cell: int):
        super().__init__()
        pixels = 3 * cell * cell
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(cell),
            nn.Conv2d(pixels, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, pixels, 3, padding=1),
            nn.PixelShuffle(cell),
        )  # fmt: skip
        last: Any = self.layers[-2]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        changes: Tensor = self.layers(image.to(next(self.parameters()))).to(image)
        return image + changes


class PatchPCA(nn.Module):
    """A linear latent space: the leading principal components of square patches, one latent cell per patch.

    Nothing crosses a patch, so a latent knows no pixel outside its own, and decoding a hole alone is exact, but for
    what a clean-up changes in the end, if there is one.
    Channels are scaled by the inverse square root of their deviation: between raw pixels, where fine detail drowns in
    noise until the very end, and whitening, where it would count as much as the picture.
    It computes where the picture is, in the picture's number type, wherever its own few kilobytes are.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor
    variance: Tensor

    def __init__(self, channels: int, cell: int, clean_up: int | None = None):
        """clean_up: its width, None for none"""
        super().__init__()
        self.cell = cell
        self.clean_up = None if clean_up is None else CleanUp(clean_up, cell)
        self.register_buffer("mean", torch.zeros(3 * cell * cell))
        self.register_buffer("basis", torch.zeros(channels, 3 * cell * cell))  # orthonormal rows
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("variance", torch.ones(channels))  # of the scaled channels over the training world

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take mean, basis, scale and variance from images [B, 3, H, W] in -1…1."""
        patches = self._patches(images).flatten(0, 2).double()
        self.mean.copy_(patches.mean(0))
        _, values, vectors = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
        deviation = values[: len(self.scale)] / len(patches) ** 0.5
        self.basis.copy_(vectors[: len(self.scale)])
        scale = deviation**-0.5 / deviation.mean() ** 0.5  # the mean variance of the channels becomes 1
        self.scale.copy_(scale)
        self.variance.copy_((deviation * scale) ** 2)

    def encode(self, image: Tensor) -> Tensor:
        mean, basis, scale = (each.to(image) for each in (self.mean, self.basis, self.scale))
        return einsum(self._patches(image) - mean, basis * scale[:, None], "b h w p, c p -> b c h w")

    def decode(self, latent: Tensor) -> Tensor:
        image = self.decode_cells(latent)
        return image if self.clean_up is None else self.clean_up(image)

    def decode_cells(self, latent: Tensor) -> Tensor:
        """Each cell by itself."""
        mean, basis, scale = (each.to(latent) for each in (self.mean, self.basis, self.scale))
        patches = einsum(latent, basis / scale[:, None], "b c h w, c p -> b h w p") + mean
        return rearrange(patches, "b h w (c y x) -> b c (h y) (w x)", y=self.cell, x=self.cell)

    def _patches(self, image: Tensor) -> Tensor:
        return rearrange(image, "b c (h y) (w x) -> b h w (c y x)", y=self.cell, x=self.cell)


class DiffusersVAE(nn.Module):
    """The latent space of a diffusers `AutoencoderKL`: the posterior's mean, shifted and scaled as its configuration
    says.

    It computes where the VAE is, in the VAE's number type; what it returns is float32.
    """

    variance: Tensor

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae
        self.channels: int = vae.config.latent_channels
        self.cell: int = 2 ** (len(vae.config.block_out_channels) - 1)  # px
        self.shift: float = vae.config.shift_factor or 0.0
        self.scale: float = vae.config.scaling_factor
        self.register_buffer("variance", torch.ones(self.channels))  # what the scaling is chosen for

    def encode(self, image: Tensor) -> Tensor:
        mean, _ = self.posterior(image)
        return mean

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [B, C, h, w] of an image's latents, which training draws its latents from."""
        normal = self.vae.encode(image.to(self._weight)).latent_dist
        return (normal.mean.float() - self.shift) * self.scale, normal.std.float() * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        image: Tensor = self.vae.decode((latent / self.scale + self.shift).to(self._weight)).sample
        return image.float()

    @property
    def _weight(self) -> Tensor:
        return next(self.vae.parameters())


class PreparedLatents(nn.Module):
    """Stands in a latent space's place where latents were prepared: it knows their variance, and no picture."""

    variance: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("variance", torch.ones(channels))


def to_pixels(image: Tensor) -> Tensor:
    """-1…1 of any precision -> 0…1 in float32"""
    return ((image.float() + 1) / 2).clamp(0, 1)
