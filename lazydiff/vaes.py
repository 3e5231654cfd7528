"""VAEs as a canvas uses them: pixels to latents and back, the whole of it or what a mask needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from . import lazy_vae
from .latents import LatentSpace
from .vae_passes import VAEState


class Pass(NamedTuple):
    """What came of an encode or a decode."""

    output: Tensor  # latents [B, C, h, w], or images [B, 3, H, W] in 0…1
    state: VAEState | None = None  # for the next one; None of a VAE that knows no lazy pass
    share: float = 1.0  # of the work of a whole pass


class CanvasVAE(Protocol):
    """Images [B, 3, H, W] in 0…1 <-> latents.

    Given the state of an earlier pass and a mask [B or 1, 1, H, W] outside which nothing has changed since then, it may
    compute no more than what the mask needs.
    """

    def encode(self, image: Tensor, state: VAEState | None = None, mask: Tensor | None = None) -> Pass: ...

    def decode(self, latent: Tensor, state: VAEState | None = None, mask: Tensor | None = None) -> Pass: ...


class WholeVAE:
    """A latent space that always computes everything, like that of the model that ships, where this is quick."""

    def __init__(self, space: LatentSpace):
        self.space = space

    def encode(self, image: Tensor, state: VAEState | None = None, mask: Tensor | None = None) -> Pass:
        return Pass(self.space.encode(image * 2 - 1))

    def decode(self, latent: Tensor, state: VAEState | None = None, mask: Tensor | None = None) -> Pass:
        return Pass(to_pixels(self.space.decode(latent)))


class LazyVAE:
    """Stable Diffusion's VAE (also SDXL's, SD3's, Flux's), as `lazy_vae` runs it.

    vae: diffusers' `AutoencoderKL`, or anything with such an `encoder` and `decoder`
    scale, shift: latents are (mean - shift) · scale, as the VAE's configuration says
    """

    def __init__(self, vae: Any, scale: float = 1.0, shift: float = 0.0):
        self.vae, self.scale, self.shift = vae, scale, shift

    def encode(self, image: Tensor, state: VAEState | None = None, mask: Tensor | None = None) -> Pass:
        moments = run(lazy_vae.encode, lazy_vae.lazy_encode, self.vae, image * 2 - 1, state, mask)
        return moments._replace(output=(moments.output.chunk(2, 1)[0] - self.shift) * self.scale)

    def decode(self, latent: Tensor, state: VAEState | None = None, mask: Tensor | None = None) -> Pass:
        latent = latent / self.scale + self.shift
        image = run(lazy_vae.decode, lazy_vae.lazy_decode, self.vae, latent, state, mask)
        return image._replace(output=to_pixels(image.output))


def run(
    whole: Callable[..., VAEState], lazily: Callable[..., lazy_vae.LazyResult], vae: Any, x: Tensor,
    state: VAEState | None, mask: Tensor | None,
) -> Pass:  # fmt: skip
    """A pass of one of `lazy_vae`'s halves: lazily where there is a state to begin from."""
    if state is None or mask is None:
        state = whole(vae, x)
        return Pass(state.output, state)
    result = lazily(vae, x, state, mask)
    return Pass(result.output, result.state, result.plan.share if result.lazy else 1.0)


def to_pixels(image: Tensor) -> Tensor:
    """-1…1 of any precision -> 0…1 in float32"""
    return ((image.float() + 1) / 2).clamp(0, 1)
