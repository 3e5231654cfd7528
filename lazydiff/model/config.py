"""What a LazyDiffusion model is made of, and the sizes that exist."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of one encoder-decoder pair; `canvas` is the side in pixels that it was trained on."""

    canvas: int  # px
    cell: int  # px of the canvas per latent cell
    channels: int  # of the latent
    patch: int  # latent cells per side of a token
    width: int
    heads: int
    decoder_depth: int
    encoder_depth: int
    mask_channels: int = 4
    mlp_ratio: int = 4
    text_width: int = 4096
    text_length: int = 120  # most tokens a prompt may have
    learned_variance: bool = True
    micro_conditions: bool = True  # canvas height, width and aspect ratio beside the time step (PixArt at 1024 px)

    @property
    def token(self) -> int:
        """Pixels per side of a token."""
        return self.cell * self.patch

    @property
    def grid(self) -> int:
        """Tokens per side of the canvas."""
        return self.canvas // self.token

    @property
    def dense(self) -> bool:
        """Whether it has to compute all tokens: an encoder without blocks tells each token of its own place alone."""
        return self.encoder_depth == 0

    @property
    def interpolation(self) -> float:
        """What positions are divided by: 1 at PixArt's 512 px and below, 2 at 1024, 4 at 2048."""
        return max(self.grid / 32, 1.0)

    def macs(self, n: int, text_length: int, keys: int | None = None) -> int:
        """Multiply-adds of one decoder call on `n` tokens with cached text keys, one sample; the embedding of the time
        step is left out. keys: tokens that they attend to, with those kept from an earlier call; `n` if not given"""
        d, patch = self.width, self.channels * self.patch**2
        linear = (6 + 2 * self.mlp_ratio) * d**2 * n  # four of self-attention, two of cross-attention, the MLP
        attention = 2 * d * n * (keys or n) + 2 * d * text_length * n
        outputs = patch * (2 if self.learned_variance else 1)
        return self.decoder_depth * (linear + attention) + n * d * (patch + outputs) + 2 * d**2 * n

    def encoder_macs(self, n: int) -> int:
        """Multiply-adds of one encoder call on a canvas of `n` tokens all of which are hole; with fewer, the last block
        does less."""
        d, patch = self.width, (self.channels + self.mask_channels) * (self.patch + 2) ** 2
        linear = (4 + 2 * self.mlp_ratio) * d**2 * n  # four of self-attention, the MLP
        return self.encoder_depth * (linear + 2 * d * n**2) + n * d * patch


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
    words: tuple[str, ...] = ()  # of its training's captions, where they are few enough to name


# The model that ships: its latent is a linear transform of 8×8 px patches, so a token is one latent cell.
SMALL = NetworkConfig(
    canvas=96, cell=8, channels=96, patch=1, width=192, heads=6, decoder_depth=6, encoder_depth=4,
    text_width=96, text_length=32, learned_variance=False, micro_conditions=False,
)  # fmt: skip
# The paper's model: PixArt-α XL/2 with one added layer. It does not state the encoder's depth: at 12 its times add up.
PIXART_1024 = NetworkConfig(
    canvas=1024, cell=8, channels=4, patch=2, width=1152, heads=16, decoder_depth=28, encoder_depth=12
)
PRESETS = {
    "pixart-512": replace(PIXART_1024, canvas=512, micro_conditions=False),
    "pixart-1024": PIXART_1024,
    "pixart-2048": replace(PIXART_1024, canvas=2048),
    "small": SMALL,
    # Of the paper's baselines, which compute every token: RegenerateImage of the canvas, RegenerateCrop of a crop.
    "small-image": replace(SMALL, encoder_depth=0),
    "small-crop": replace(SMALL, encoder_depth=0, canvas=48),
}
