"""What a LazyDiffusion model is made of, and the sizes that exist."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..core.checks import Range, check_choice, check_flags, check_ranges, shortened

SHIPPED = Path(__file__).parents[1] / "weights" / "lazydiffusion-512.safetensors"
# What a network answers with: noise and the step's variance (IDDPM); or on a flow path what refines a fixed estimate of
# the clean tokens; or what it expects them to be, mean and variance, see sampling/flow.py.
Prediction = Literal["iddpm", "flow", "wiener"]
SAMPLERS = ("iddpm", "ancestral", "euler", "dpmpp", "ddim", "unipc")

# What may be believed of a checkpoint or a configuration before anything of such a size is made.
SIZES = {
    "canvas": Range(1, 16384, whole=True),
    "cell": Range(1, 64, whole=True),
    "channels": Range(1, 4096, whole=True),
    "patch": Range(1, 16, whole=True),
    "width": Range(4, 16384, whole=True),
    "heads": Range(1, 256, whole=True),
    "decoder_depth": Range(1, 256, whole=True),
    "encoder_depth": Range(0, 256, whole=True),
    "mask_channels": Range(1, 256, whole=True),
    "mlp_ratio": Range(1, 16, whole=True),
    "text_width": Range(4, 16384, whole=True),
    "text_length": Range(1, 4096, whole=True),
}
TEXT_LAYERS = {"text_layers": Range(1, 64, whole=True)}
CLEAN_UP = {"clean_up": Range(1, 4096, whole=True)}
GRID = 512  # tokens per side at most
FINGERPRINT = re.compile("[0-9a-f]{16}")
SAMPLING = {
    "guidance": Range(0, 50),
    "temperature": Range(0, 10),
    "shift": Range(0, 100, above=True),
}


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
    rotary: bool = False  # places turn queries and keys, and offsets alone count; otherwise they are added

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

    @property
    def named(self) -> dict[str, Any]:
        """What files, fingerprints and states name: `rotary` only where it is True, as before there was any."""
        return {name: value for name, value in asdict(self).items() if name != "rotary" or value}

    def check(self) -> None:
        """Errors: ValueError for sizes that no network has, or that do not go together."""
        check_ranges(self, SIZES)
        check_flags(self, "learned_variance", "micro_conditions", "rotary")
        for name, divisor in {"heads": self.heads, "the 4 parts of a position": 4}.items():
            if self.width % divisor:
                raise ValueError(f"width is {self.width}: it must be a multiple of {divisor} ({name})")
        if self.micro_conditions and self.width % 3:
            raise ValueError(f"width is {self.width}: with micro_conditions it must be a multiple of 3")
        if self.rotary and self.width // self.heads % 4:
            raise ValueError(f"width is {self.width}: with rotary it must be a multiple of {4 * self.heads}")
        if self.text_width % 4:
            raise ValueError(f"text_width is {self.text_width}: it must be a multiple of 4")
        if self.canvas % self.token or self.grid > GRID:
            raise ValueError(f"canvas is {self.canvas}: it must be 1 to {GRID} tokens of {self.token} pixels")

    def macs(self, n: int, text_length: int, keys: int | None = None) -> int:
        """Multiply-adds of one decoder call on `n` tokens with cached text keys, one sample; the embedding of the time
        step is left out. keys: tokens that they attend to, with those kept from an earlier call; `n` if not given"""
        d, patch = self.width, self.channels * self.patch**2
        cross = 2 * d**2 * n + 2 * d * text_length * n
        outputs = patch * (2 if self.learned_variance else 1)
        blocks = self.decoder_depth * (sum(self.module_macs(n, keys)) + cross)
        return blocks + n * d * (patch + outputs) + 2 * d**2 * n

    def module_macs(self, n: int, keys: int | None = None) -> tuple[int, int]:
        """Multiply-adds of one block's self-attention and of its MLP, as in `macs`."""
        d = self.width
        return 4 * d**2 * n + 2 * d * n * (keys or n), 2 * self.mlp_ratio * d**2 * n

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

    def check(self) -> None:
        """Errors: ValueError for a sampler that does not exist or settings out of range."""
        if self.sampler not in SAMPLERS:
            raise ValueError(f"there is no sampler called {shortened(self.sampler)}: choose {', '.join(SAMPLERS)}")
        if not Range(1, 1000, whole=True).has(self.steps):
            raise ValueError(f"{shortened(self.steps)} steps: choose 1 to 1000")
        check_ranges(self, SAMPLING)


@dataclass(frozen=True)
class ModelConfig:
    """Everything a checkpoint says about itself."""

    network: NetworkConfig
    prediction: Prediction
    name: str = "lazydiffusion"
    text_layers: int = 2
    sampling: Sampling = field(default_factory=Sampling)
    words: tuple[str, ...] = ()  # of its training's captions, where they are few enough to name
    # What it was trained with, by `pretrained_fingerprint`; None for its own, or where nobody has written it down.
    vae: str | None = None
    text_encoder: str | None = None
    clean_up: int | None = None  # channels of the convolutions after its own latent space; None: there are none

    def check(self) -> None:
        """Errors: ValueError for what no model is; nothing is built for it."""
        check_choice("prediction", self.prediction, get_args(Prediction))
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 200:
            raise ValueError("name is not a text of 1 to 200 characters")
        if not all(isinstance(word, str) for word in self.words):
            raise ValueError("words is not a list of texts")
        for name in ("vae", "text_encoder"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and FINGERPRINT.fullmatch(value)):
                raise ValueError(f"{name} is {shortened(value)}: no fingerprint")
        check_ranges(self, TEXT_LAYERS if self.clean_up is None else TEXT_LAYERS | CLEAN_UP)
        self.network.check()
        self.sampling.check()
        if self.network.learned_variance == (self.prediction == "flow"):
            raise ValueError(f"learned_variance is {self.network.learned_variance}, and prediction {self.prediction}")


# The model that ships: its latent is a linear transform of 8×8 px patches, so a token is one latent cell.
SMALL = NetworkConfig(
    canvas=96, cell=8, channels=96, patch=1, width=192, heads=6, decoder_depth=6, encoder_depth=4,
    text_width=96, text_length=32, learned_variance=False, micro_conditions=False,
)  # fmt: skip
# A network for 512 px and any content: a token is 2×2 latent cells, and smaller pictures are as good to learn from.
# Of 192 components 72: with 48, real pictures lose a third of their texture, and 96 would make a token much wider than
# the network that has to hold it.
LARGE = NetworkConfig(
    canvas=512, cell=8, channels=72, patch=2, width=256, heads=8, decoder_depth=6, encoder_depth=4,
    text_width=128, text_length=32, micro_conditions=False, rotary=True,
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
    "small-iddpm": replace(SMALL, learned_variance=True),
    "lazydiffusion-512": LARGE,
    # Of the paper's baselines, which compute every token: RegenerateImage of the canvas, RegenerateCrop of a crop.
    "pixart-1024-image": replace(PIXART_1024, encoder_depth=0),
    "pixart-512-crop": replace(PIXART_1024, encoder_depth=0, canvas=512, micro_conditions=False),
    "small-image": replace(SMALL, encoder_depth=0),
    "lazydiffusion-512-image": replace(LARGE, encoder_depth=0),
    "small-crop": replace(SMALL, encoder_depth=0, canvas=48),
}
