"""One LazyDiffusion model: encoder, decoder, text encoder and latent space, with the settings it was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .latents import PatchPCA
from .networks.captured import BUCKET, CapturedDecoder
from .networks.config import NetworkConfig
from .networks.decoder import LazyDecoder, TextKeys
from .networks.encoder import ContextEncoder
from .networks.text import TextEncoder
from .tokens import HoleTokens, patchify


@dataclass(frozen=True)
class Sampling:
    """How a model likes to be sampled; every setting can be overridden per edit."""

    sampler: str = "iddpm"
    steps: int = 50
    guidance: float = 4.5
    temperature: float = 1.0  # of the fresh noise of stochastic samplers
    shift: float = 1.0  # > 1 spends more steps at high noise


@dataclass(frozen=True)
class ModelConfig:
    """Everything a checkpoint says about itself."""

    network: NetworkConfig
    prediction: Literal["iddpm", "flow"]  # noise with learned variance, or clean tokens on a flow path
    name: str = "lazydiffusion"
    text_layers: int = 2
    sampling: Sampling = field(default_factory=Sampling)


class LazyDiffusion(nn.Module):
    """Encoder and decoder with what stands before and behind them.

    text: prompts -> hidden states [B, L, text_width] and key mask [B, L]
    latent: a latent space, see `latents.LatentSpace`
    networks: `operations` and `attention` of encoder and decoder
    """

    def __init__(self, config: ModelConfig, text: Any, latent: Any, **networks: Any):
        super().__init__()
        self.config, self.text, self.latent = config, text, latent
        self.encoder = ContextEncoder(config.network, **networks)
        self.decoder = LazyDecoder(config.network, **networks)
        self.captured: CapturedDecoder | None = None

    @classmethod
    def self_contained(cls, config: ModelConfig, vocabulary: bytes, **networks: Any) -> LazyDiffusion:
        """A model like the one that ships, whose text encoder and latent space are its own."""
        size = config.network
        text = TextEncoder(vocabulary, size.text_width, config.text_layers, size.text_length)
        return cls(config, text, PatchPCA(size.channels, size.cell), **networks)

    @property
    def variance(self) -> Tensor:
        """[C·p·p] variance of the clean tokens' channels."""
        variance: Tensor = self.latent.variance
        return variance.repeat_interleave(self.config.network.patch**2)

    @cached_property
    def fingerprint(self) -> str:
        """A name of these very weights, by which a context knows the model that made it."""
        return fingerprint(self.config, self.encoder.state_dict())

    def tokens(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in -1…1 -> clean tokens of the whole canvas [B, N, C·p·p]."""
        return patchify(self.latent.encode(image), self.config.network.patch)

    def context(self, image: Tensor, mask: Tensor, hole: HoleTokens) -> Tensor:
        """Context tokens [B, n, width]; what lies under the mask is replaced by mid grey and cannot be seen."""
        return self.encoder(self.latent.encode(image * (1 - mask)), mask, hole)

    def prompt(self, prompts: Sequence[str]) -> TextKeys:
        """Keys and values of a batch of prompts for the decoder."""
        text, mask = self.text(prompts)
        return self.decoder.text_keys(text.to(self.precision), mask)

    def capture(self, bucket: int = BUCKET) -> None:
        """From now on, sample with steps of few shapes that a GPU replays from CUDA graphs; see `CapturedDecoder`.

        bucket: multiple of tokens that holes are rounded up to
        """
        self.captured = CapturedDecoder(self.decoder, bucket)

    @property
    def precision(self) -> torch.dtype:
        """What steps are computed in, the decoder's number type: `model.decoder.bfloat16()` changes it. Everything
        around the decoder, noise levels and a sampler's tokens with it, stays as it is."""
        return self.decoder.ctx_fuse.weight.dtype

    @property
    def step(self) -> LazyDecoder | CapturedDecoder:
        """What samplers call: the decoder, or its captured form."""
        return self.captured or self.decoder

    def initialise(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.encoder.initialise()
        self.decoder.initialise()


def fingerprint(config: ModelConfig, encoder: Mapping[str, Tensor]) -> str:
    """A name of an encoder's weights and settings, whatever precision they are loaded in."""
    digest = hashlib.sha256(repr(config).encode())
    for name, tensor in sorted(encoder.items()):
        digest.update(name.encode() + tensor.cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
