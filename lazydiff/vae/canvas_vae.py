"""VAEs as a canvas uses them: pixels to latents and back, all of it or what has changed."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.latent_space import LatentSpace, to_pixels
from . import lazy_vae
from .passes import VAEState

KEPT = 2  # states of each half of a VAE: some 100 MB each at 1024 px


class VAEOutput(NamedTuple):
    """What came of an encode or a decode."""

    output: Tensor  # latents [B, C, h, w], or images [B, 3, H, W] in 0…1
    planned: float | None = None  # share of the whole work that a lazy pass takes; None: there was none to go on from

    @property
    def share(self) -> float:
        """Of the work of a whole pass."""
        return 1.0 if self.planned is None or self.planned > lazy_vae.LIMIT else self.planned


class CanvasVAE(Protocol):
    """Images [B, 3, H, W] in 0…1 <-> latents."""

    lazy: bool  # whether it computes less where it can

    def encode(self, image: Tensor, whole: bool = False) -> VAEOutput:
        """whole: all of it, whatever is known."""

    def decode(self, latent: Tensor, whole: bool = False) -> VAEOutput:
        """Likewise."""


class WholeVAE:
    """A latent space that always computes everything, like that of the model that ships, where this is quick."""

    lazy = False

    def __init__(self, space: LatentSpace):
        self.space = space

    def encode(self, image: Tensor, whole: bool = False) -> VAEOutput:
        return VAEOutput(self.space.encode(image * 2 - 1))

    def decode(self, latent: Tensor, whole: bool = False) -> VAEOutput:
        return VAEOutput(to_pixels(self.space.decode(latent)))


Half = Literal["encode", "decode"]


class PassCache:
    """The last few passes of one half of a VAE: what went in, [1, C, H, W], and their states."""

    def __init__(self) -> None:
        self.kept: deque[tuple[Tensor, VAEState]] = deque(maxlen=KEPT)

    def keep(self, x: Tensor, state: VAEState) -> None:
        self.kept.append((x.clone(), state))  # a copy: it must stay what the state was made of

    def nearest(self, x: Tensor) -> tuple[VAEState, Tensor] | None:
        """The state of what differs least from x, and a mask [1, 1, H, W] of where it does; None of another size."""
        fits = [(old, state) for old, state in self.kept if old.shape == x.shape]
        same = [(state, (old != x.to(old.device)).any(1, keepdim=True).float()) for old, state in reversed(fits)]
        if len(same) < 2:
            return same[0] if same else None
        changed = torch.stack([each.sum().to(x.device) for _, each in same]).tolist()  # read at once
        return same[changed.index(min(changed))]


class LazyVAE:
    """Stable Diffusion's VAE (also SDXL's, SD3's, Flux's), which remembers its last passes and goes on from them.

    What has changed since then it finds by comparing, so that no result rests on what a caller believes. A batch is
    computed one by one: variations of a canvas differ in the hole, so that each goes on from the one before. All is
    done where the VAE is and in its number type; what is returned is float32.

    vae: diffusers' `AutoencoderKL`, or anything with such an `encoder` and `decoder`
    scale, shift: latents are (mean - shift) · scale, as the VAE's configuration says
    """

    lazy = True

    def __init__(self, vae: Any, scale: float = 1.0, shift: float = 0.0):
        self.vae, self.scale, self.shift = vae, scale, shift
        self.memory: dict[Half, PassCache] = {"encode": PassCache(), "decode": PassCache()}

    def encode(self, image: Tensor, whole: bool = False) -> VAEOutput:
        moments = self.each("encode", image * 2 - 1, whole)
        return moments._replace(output=(moments.output.chunk(2, 1)[0].float() - self.shift) * self.scale)

    def decode(self, latent: Tensor, whole: bool = False) -> VAEOutput:
        image = self.each("decode", latent / self.scale + self.shift, whole)
        return image._replace(output=to_pixels(image.output))

    def each(self, half: Half, x: Tensor, whole: bool) -> VAEOutput:
        """A batch of what goes into the network -> what comes out of it."""
        weight = next(getattr(self.vae, f"{half}r").parameters())
        passes = [self._one(half, one, whole) for one in x.to(weight).split(1)]
        planned = [each.planned for each in passes if each.planned is not None]
        return VAEOutput(torch.cat([each.output for each in passes]), max(planned) if len(planned) == len(passes) else None)

    def run(self, half: Half, x: Tensor, old: VAEState | None, changed: Tensor | None, share: float) -> VAEState:
        """A pass over all of x, or lazily from an old state; share: of the whole work."""
        if old is None:
            state: VAEState = getattr(lazy_vae, half)(self.vae, x)
            return state
        result: lazy_vae.LazyResult = getattr(lazy_vae, f"lazy_{half}")(self.vae, x, old, changed)
        return result.state

    def _one(self, half: Half, x: Tensor, whole: bool) -> VAEOutput:
        memory = self.memory[half]
        found = None if whole else memory.nearest(x)
        if found is None:
            state = self.run(half, x, None, None, 1.0)
            done = VAEOutput(state.output)
        else:
            old, changed = found
            if half == "decode":
                changed = F.interpolate(changed, old.output.shape[-2:])
            done = VAEOutput(old.output, getattr(lazy_vae, f"plan_{half}")(self.vae, changed).share)
            state = self.run(half, x, old, changed, done.share)
            done = done._replace(output=state.output)
        memory.keep(x, state)
        return done
