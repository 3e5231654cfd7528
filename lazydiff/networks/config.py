"""What a LazyDiffusion model is made of, and the sizes that exist."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


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
    # Sees the square around the hole alone. (It is no part of the name by which a context knows its model.)
    crop: bool = field(default=False, repr=False)
    # Tokens per side of the encoder's windows, see `windows`; 0: it attends to all tokens one by one. (Neither is this:
    # the weights are the same, and the same decoder reads the context.)
    encoder_window: int = field(default=0, repr=False)

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
        does less. Windows are taken to be whole, and the canvas to have at least three per side."""
        d, window, patch = self.width, self.encoder_window, (self.channels + self.mask_channels) * (self.patch + 2) ** 2
        keys = 9 * window**2 + n // window**2 * (1 + max(window**2 // 16, 1)) if window else n
        linear = (4 + 2 * self.mlp_ratio) * d**2 * n  # four of self-attention, the MLP
        return self.encoder_depth * (linear + 2 * d * n * keys) + n * d * patch


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
    # At 4096 px, attention of every token to all others takes nine tenths of the encoder's time.
    "pixart-4096": replace(PIXART_1024, canvas=4096, encoder_window=16),
    "small": SMALL,
    # The paper's baselines: RegenerateImage computes every token of the canvas, RegenerateCrop those of a crop.
    "small-image": replace(SMALL, encoder_depth=0),
    "small-crop": replace(SMALL, encoder_depth=0, canvas=48, crop=True),
}
