"""One LazyDiffusion model: encoder, decoder, text encoder and latent space, with the settings it was made for."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..core.tokens import HoleTokens, patchify
from .config import ModelConfig
from .context_encoder import ContextEncoder
from .decoder import LazyDecoder, TextKeys
from .latent_space import PatchPCA
from .text import TextEncoder

# What a fingerprint names of a model's sizes. Never changed: contexts and files of gates are known by it.
FINGERPRINTED = (
    "canvas", "cell", "channels", "patch", "width", "heads", "decoder_depth", "encoder_depth", "mask_channels",
    "mlp_ratio", "text_width", "text_length", "learned_variance", "micro_conditions", "rotary",
)  # fmt: skip


class LazyDiffusion(nn.Module):
    """Encoder and decoder with what stands before and behind them.

    text: prompts -> hidden states [B, L, text_width] and key mask [B, L]
    latent: a latent space, see `latent_space.LatentSpace`
    networks: `operations` and `attention` of encoder and decoder
    """

    def __init__(self, config: ModelConfig, text: Any, latent: Any, **networks: Any):
        super().__init__()
        self.config, self.text, self.latent = config, text, latent
        self.encoder = ContextEncoder(config.network, **networks)
        self.decoder = LazyDecoder(config.network, **networks)

    @classmethod
    def self_contained(cls, config: ModelConfig, vocabulary: bytes, **networks: Any) -> LazyDiffusion:
        """A model like the one that ships, whose text encoder and latent space are its own."""
        size = config.network
        text = TextEncoder(vocabulary, size.text_width, config.text_layers, size.text_length)
        return cls(config, text, PatchPCA(size.channels, size.cell, config.clean_up), **networks)

    def beside(self, text: Any, latent: Any) -> LazyDiffusion:
        """The same networks with another text encoder and another latent space."""
        other = copy.copy(self)
        other._modules = {**self._modules, "text": text, "latent": latent}
        return other

    @property
    def variance(self) -> Tensor:
        """[C·p·p] variance of the clean tokens' channels."""
        variance: Tensor = self.latent.variance.float()
        return variance.repeat_interleave(self.config.network.patch**2)

    @cached_property
    def fingerprint(self) -> str:
        """A name of the encoder's weights and of the model's sizes, by which a context knows who made it. It is found
        when first asked for (of a checkpoint: when that is loaded), and no later change of precision changes it."""
        return fingerprint(self.config, self.encoder.state_dict())

    def tokens(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in -1…1 -> clean tokens of the whole canvas [B, N, C·p·p]."""
        return patchify(self.latent.encode(image), self.config.network.patch)

    def context(self, image: Tensor, mask: Tensor, hole: HoleTokens) -> Tensor:
        """Context tokens [B, n, width]; what lies under the mask is replaced by mid grey and cannot be seen."""
        return self.context_of(self.latent.encode(image * (1 - mask)), mask, hole)

    def context_of(self, visible: Tensor, mask: Tensor, hole: HoleTokens) -> Tensor:
        """The same from the latent [B, C, h, w] of what may be seen, computed in the encoder's own number type."""
        return self.encoder(visible.to(self.encoder.mask_down.weight), mask, hole)

    def prompt(self, prompts: Sequence[Any]) -> TextKeys:
        """Keys and values of a batch of prompts for the decoder: of words, or of what stands for them in training."""
        text, mask = self.text(prompts)
        return self.decoder.text_keys(text.to(self.device, self.precision), mask.to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the networks are, and where pictures and contexts are brought to them."""
        return self.decoder.ctx_fuse.weight.device

    @property
    def precision(self) -> torch.dtype:
        """What steps are computed in, the decoder's number type: `model.bfloat16()` changes it. Everything around the
        networks, noise levels and a sampler's tokens with it, stays float32."""
        return self.decoder.ctx_fuse.weight.dtype

    def initialise(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.encoder.initialise()
        self.decoder.initialise()


def fingerprint(config: ModelConfig, weights: Mapping[str, Tensor]) -> str:
    """A name of weights, an encoder's or others, and of a model's sizes.

    Weights count in half precision, in which checkpoints are stored.
    """
    sizes = {name: value for name, value in config.network.named.items() if name in FINGERPRINTED}
    named = {"prediction": config.prediction, **sizes}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()[:16]
