"""VAEs as a canvas uses them: pixels to latents and back, all of it or what has changed since an earlier pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.latent_space import LatentSpace, to_pixels
from . import lazy_vae
from .passes import VAEState
from .stages import encoder_stages


class EarlierPass(NamedTuple):
    """What a lazy pass goes on from: what went into a network, [1, C, H, W], and what the pass left."""

    x: Tensor
    state: VAEState


class VAEOutput(NamedTuple):
    """What came of an encode or a decode."""

    output: Tensor  # latents [B, C, h, w], or images [B, 3, H, W] in 0…1
    passes: tuple[EarlierPass, ...] = ()  # of each picture of the batch; of VAEs that cannot be lazy, none
    planned: float | None = None  # share of the whole work that a lazy pass takes; None: there was none to go on from

    @property
    def share(self) -> float:
        """Of the work of a whole pass."""
        return work_share(self.planned)


def work_share(planned: float | None) -> float:
    """What a pass takes of the work of a whole one, which is made where a lazy one would not be much less."""
    return 1.0 if planned is None or planned > lazy_vae.LIMIT else planned


class CanvasVAE(Protocol):
    """Images [B, 3, H, W] in 0…1 <-> latents. The result is a function of what is given: nothing is remembered."""

    lazy: bool  # whether it computes less where it can
    cell: int  # px per side of a latent cell

    def encode(self, image: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        """earlier: passes to go on from, one for all pictures or one for each; none: all of it is computed"""

    def decode(self, latent: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        """Likewise."""


class WholeVAE:
    """A latent space that always computes everything, like that of the model that ships, where this is quick."""

    lazy = False

    def __init__(self, space: LatentSpace):
        self.space, self.cell = space, space.cell

    def encode(self, image: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        return VAEOutput(self.space.encode(image * 2 - 1))

    def decode(self, latent: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        return VAEOutput(to_pixels(self.space.decode(latent)))


Half = Literal["encode", "decode"]


class LazyVAE:
    """Stable Diffusion's VAE (also SDXL's, SD3's, Flux's), which goes on from earlier passes.

    What has changed since then it finds by comparing, so that no result rests on what a caller believes. A batch is
    computed one by one. All is done where the VAE is and in its number type; what is returned is float32.

    vae: diffusers' `AutoencoderKL`, or anything with such an `encoder` and `decoder`
    scale, shift: latents are (mean - shift) · scale, as the VAE's configuration says
    """

    lazy = True

    def __init__(self, vae: Any, scale: float = 1.0, shift: float = 0.0):
        self.vae, self.scale, self.shift = vae, scale, shift
        whole = 1024  # px: what is left of them in latents says how large a cell is
        for stage in encoder_stages(vae):
            whole, _ = stage.after((whole, whole))
        self.cell = 1024 // whole

    def encode(self, image: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        moments = self.each("encode", image * 2 - 1, earlier)
        return moments._replace(output=(moments.output.chunk(2, 1)[0].float() - self.shift) * self.scale)

    def decode(self, latent: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
        image = self.each("decode", latent / self.scale + self.shift, earlier)
        return image._replace(output=to_pixels(image.output))

    def each(self, half: Half, x: Tensor, earlier: Sequence[EarlierPass]) -> VAEOutput:
        """A batch of what goes into the network -> what comes out of it."""
        goes_on = [earlier[i % len(earlier)] if earlier else None for i in range(len(x))]
        made = [self.one(half, *pair) for pair in zip(x.split(1), goes_on, strict=True)]
        planned = [each.planned for each in made if each.planned is not None]
        passes = tuple(one for each in made for one in each.passes)
        return VAEOutput(torch.cat([each.output for each in made]), passes, max(planned, default=None))

    def run(self, half: Half, x: Tensor, old: VAEState | None, plan: lazy_vae.Plan | None) -> VAEState:
        """A pass over all of x, or by a plan from an old state."""
        if old is None or plan is None or plan.share > lazy_vae.LIMIT:
            whole: VAEState = getattr(lazy_vae, f"full_{half}")(self.vae, x)
            return whole
        state: VAEState = getattr(lazy_vae, f"{half}_plan")(self.vae, x, old, plan)
        return state

    def place(self, half: Half) -> tuple[torch.device, torch.dtype]:
        """Where a half computes, and in which number type."""
        weight = next(getattr(self.vae, f"{half}r").parameters())
        return weight.device, weight.dtype

    def one(self, half: Half, x: Tensor, earlier: EarlierPass | None) -> VAEOutput:
        """One picture of a batch."""
        x = x.to(*self.place(half))
        if earlier is None or earlier.x.shape != x.shape:
            state = self.run(half, x, None, None)
            return VAEOutput(state.output, (EarlierPass(x, state),))
        changed = (earlier.x.to(x) != x).any(1, keepdim=True).float()
        if half == "decode":
            changed = F.interpolate(changed, earlier.state.output.shape[-2:])
        plan: lazy_vae.Plan = getattr(lazy_vae, f"plan_{half}")(self.vae, changed)
        state = self.run(half, x, earlier.state, plan)
        return VAEOutput(state.output, (EarlierPass(x, state),), plan.share)
