"""The stages of an edit as calls that can be timed: the networks' full-size architectures with random weights.

Time does not depend on what the weights are. On a GPU every stage is one call of the real thing. On a CPU, where one
takes minutes, a stage is a sum of smaller calls, each so many times: decoder and encoder of a few layers (all are
alike) beside what they do only once, and a smaller picture's VAE times the ratio of counted multiply-adds.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lazydiff.core.poisson import poisson_blend
from lazydiff.model.config import NetworkConfig
from lazydiff.model.context_encoder import ContextEncoder
from lazydiff.model.decoder import LazyDecoder, PatchEmbedder
from lazydiff.pipeline.fit import Crop
from lazydiff.vae.lazy_vae import LIMIT, full_decode, full_encode, lazy_decode, lazy_encode, plan_decode, plan_encode
from lazydiff.vae.passes import VAEState

from .harness import Call
from .subjects import decoder_call, first_tokens, make_vae, square_mask

VAE_PERCENT = 10  # the mask of a lazy pass that is timed at another size than the canvas's
PLANS = {"encode": plan_encode, "decode": plan_decode}


class Part(NamedTuple):
    call: Call
    times: float


Stage = tuple[Part, ...]  # its time is the sum of its parts'


@dataclass(frozen=True)
class Setting:
    """What is timed of the networks, and how."""

    device: str
    dtype: torch.dtype
    rows: int  # of a guided step's two in one call
    decoder_layers: int
    encoder_layers: int  # at least 2, as the last one differs from the others
    vae_size: int | None = None  # px; None: the canvas's own
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_groups: int = 32

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)


class FirstHalf(nn.Module):
    """In the place of the layer that fuses the context: there is none."""

    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(2, -1)[0]


class NineChannels(LazyDecoder):
    """PixArt-α that reads the masked latent and the mask beside the noise: what the paper's baselines are made of."""

    def __init__(self, config: NetworkConfig, **factory: Any):
        super().__init__(config, **factory)
        self.x_embedder = PatchEmbedder(2 * config.channels + 1, config.width, config.patch, **factory)
        self.ctx_fuse = FirstHalf()


def step(decoder: LazyDecoder, n: int, setting: Setting) -> Call:
    """One call of a decoder on n tokens."""
    hole = first_tokens(decoder.config, [n] * setting.rows)
    return decoder_call(decoder, hole, context=not isinstance(decoder, NineChannels))


class Networks:
    """Decoder and context encoder for one size of canvas."""

    def __init__(self, config: NetworkConfig, setting: Setting, decoder: type[LazyDecoder] = LazyDecoder):
        self.config, self.setting = config, setting

        @cache
        def decoder_of(layers: int) -> LazyDecoder:
            cut = replace(config, decoder_depth=layers)
            return decoder(cut, device=setting.device, dtype=setting.dtype).eval()

        @cache
        def encoder_of(layers: int) -> ContextEncoder:
            cut = replace(config, encoder_depth=layers)
            return ContextEncoder(cut, device=setting.device, dtype=setting.dtype).eval()

        self._decoder, self._encoder = decoder_of, encoder_of
        self._encode = cache(self._context_call)

    def step(self, n: int) -> Stage:
        """A guided step on n tokens."""
        depth, timed = self.config.decoder_depth, self.setting.decoder_layers
        pair, layers = 2 / self.setting.rows, depth / timed
        parts = [Part(step(self._decoder(timed), n, self.setting), pair * layers)]
        if timed < depth:
            parts.append(Part(step(self._decoder(0), n, self.setting), pair * (1 - layers)))
        return tuple(parts)

    def context(self, n: int) -> Stage:
        """The context of a hole of n tokens. Only the last layer's work depends on n."""
        depth, timed = self.config.encoder_depth, self.setting.encoder_layers
        if timed == depth:
            return (Part(self._encode(depth, n), 1),)
        layers = (depth - 1) / (timed - 1)
        return Part(self._encode(1, n), 1), Part(self._encode(timed, 1), layers), Part(self._encode(1, 1), -layers)

    def _context_call(self, layers: int, n: int) -> Call:
        config, setting, side = self.config, self.setting, self.config.canvas
        latent = setting.noise(1, config.channels, side // config.cell, side // config.cell)
        mask = torch.zeros(1, 1, side, side, device=setting.device, dtype=setting.dtype)
        hole, encoder = first_tokens(config, [n]).to(setting.device), self._encoder(layers)
        return lambda: encoder(latent, mask, hole)


class Autoencoder:
    """Stable Diffusion's VAE, at the canvas's size or, by counted multiply-adds, from what it takes at another."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.vae = make_vae(setting.vae_channels, setting.vae_groups).to(setting.device, setting.dtype)
        self._canvas, self._calls = cache(self._open_canvas), cache(self._full_calls)

    def full(self, canvas: int) -> dict[str, Stage]:
        """Stages `encode` and `decode` as everyone has them, `open encode` and `open decode` that leave a state."""
        size = self.setting.vae_size or canvas
        ratio = {half: plan(self.vae, mask(canvas, VAE_PERCENT)).full / plan(self.vae, mask(size, VAE_PERCENT)).full
                 for half, plan in PLANS.items()}  # fmt: skip
        return {name: (Part(call, ratio[name.split()[-1]]),) for name, call in self._calls(size).items()}

    def lazy(self, canvas: int, percent: float) -> dict[str, Stage]:
        """Stages `lazy encode` and `lazy decode` of a mask, which compute everything where that is less work."""
        size = self.setting.vae_size
        if size is None:
            calls = self._lazy_calls(canvas, percent, LIMIT)
            return {f"lazy {half}": (Part(call, 1),) for half, call in calls.items()}
        calls, stages = self._calls_of_rate, self.full(canvas)
        result = {}
        for half, plan in PLANS.items():
            wanted, timed = plan(self.vae, mask(canvas, percent)), plan(self.vae, mask(size, VAE_PERCENT))
            lazy = (Part(calls[half], wanted.macs / timed.macs),)
            result[f"lazy {half}"] = lazy if wanted.share <= LIMIT else stages[f"open {half}"]
        return result

    def state_bytes(self, canvas: int) -> int:
        """What an open canvas keeps beside its picture and latents."""
        meta = copy.deepcopy(self.vae).to("meta")
        image, latent = (torch.empty(1, channels, side, side, dtype=self.setting.dtype, device="meta")
                         for channels, side in ((3, canvas), (4, canvas // 8)))  # fmt: skip
        states = full_encode(meta, image), full_decode(meta, latent)
        return sum(x.numel() * x.element_size() for state in states for x in tensors(state))

    @cached_property
    def _calls_of_rate(self) -> dict[str, Call]:
        assert self.setting.vae_size is not None
        return self._lazy_calls(self.setting.vae_size, VAE_PERCENT, float("inf"))

    def _open_canvas(self, size: int) -> tuple[Tensor, Tensor, VAEState, VAEState]:
        image, latent = self.setting.noise(1, 3, size, size), self.setting.noise(1, 4, size // 8, size // 8)
        return image, latent, full_encode(self.vae, image), full_decode(self.vae, latent)

    def _full_calls(self, size: int) -> dict[str, Call]:
        vae, (image, latent, *_) = self.vae, self._canvas(size)
        return {"encode": lambda: vae.encode(image), "decode": lambda: vae.decode(latent),
                "open encode": lambda: full_encode(vae, image),
                "open decode": lambda: full_decode(vae, latent)}  # fmt: skip

    def _lazy_calls(self, size: int, percent: float, limit: float) -> dict[str, Call]:
        vae, (image, latent, encoded, decoded) = self.vae, self._canvas(size)
        hole = mask(size, percent).to(self.setting.device)
        return {"encode": lambda: lazy_encode(vae, image, encoded, hole, limit),
                "decode": lambda: lazy_decode(vae, latent, decoded, hole, limit)}  # fmt: skip


def blend(canvas: int, percent: float, setting: Setting) -> Stage:
    destination, source = (torch.rand(1, 3, canvas, canvas, device=setting.device) for _ in range(2))
    hole = mask(canvas, percent).to(setting.device)
    return (Part(lambda: poisson_blend(destination, source, hole), 1),)


def crop_and_scale(canvas: int, percent: float, side: int, setting: Setting) -> Stage:
    """RegenerateCrop's way from the canvas and back."""
    image, generated = (torch.rand(1, 3, size, size, device=setting.device) for size in (canvas, side))
    hole = mask(canvas, percent).to(setting.device)

    def call() -> Tensor:
        crop = Crop.around(hole)
        crop.view(image, hole, side)
        return crop.back(generated, image)

    return (Part(call, 1),)


def mask(canvas: int, percent: float) -> Tensor:
    return square_mask(canvas, percent) if percent < 100 else torch.ones(1, 1, canvas, canvas)


def tensors(state: VAEState) -> list[Tensor]:
    return [state.output, *state.keys, *state.values, *(x for one in state.statistics for x in one)]
