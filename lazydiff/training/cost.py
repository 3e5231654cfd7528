"""What a training takes before it is begun: parameters, memory of a process, and work.

Only encoder and decoder are counted, which are all that is trained on prepared latents and text features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from ..core.checks import Range, check_ranges
from ..model.lazydiffusion import LazyDiffusion
from .config import TrainingConfig
from .engine import spread_modules

# Of all tokens: 10 %, the paper's own example of an edit, and the whole canvas for one example in twenty, from which a
# model learns to begin on a blank one.
HOLE = 0.95 * 0.10 + 0.05
FULL, HALF = 4, 2  # bytes
# Values that a block keeps for the backward pass, in widths of the network for each of its tokens, beside twice the
# width of its MLP: what goes into products and norms, queries, keys, values, and what attention answers. Before and
# behind the blocks the same of the added layer, the last norms and the output. With rotary positions queries and keys
# are kept turned, beside what the values are a part of.
DECODER_VALUES, ENCODER_VALUES, OTHER_VALUES = 15, 8, 7
DECODER_TURNED, ENCODER_TURNED = 2, 1


@dataclass(frozen=True)
class TrainingCost:
    """Estimates for a configuration.

    processes: that share a step's examples
    hole: mean share of the canvas's tokens that are hole, padding included
    """

    config: TrainingConfig
    processes: int = 1
    hole: float = HOLE

    def check(self) -> None:
        """Errors: ValueError for a training that there cannot be."""
        check_ranges(self, {"processes": Range(1, 2**16, whole=True), "hole": Range(0, 1, above=True)})
        self.config.micro_batch(self.processes)

    @cached_property
    def model(self) -> LazyDiffusion:
        """Of shapes alone."""
        with torch.device("meta"):
            return LazyDiffusion(self.config.model, None, None)

    @property
    def parameters(self) -> dict[str, int]:
        return {name: size(getattr(self.model, name)) for name in ("encoder", "decoder")}

    @property
    def tokens(self) -> int:
        """Of an example."""
        return (self.config.side // self.config.model.network.token) ** 2

    @property
    def computed(self) -> int:
        """Tokens of an example that the decoder computes."""
        return self.tokens if self.config.model.network.dense else max(round(self.hole * self.tokens), 1)

    def memory(self, sharded: bool = False, checkpointing: bool | None = None) -> dict[str, int]:
        """Bytes of one process by what they are for; the parts of a copy each (DDP), or of a share of one (FSDP2).

        Of the matrices that Muon moves there is one moment, and two are counted.
        """
        total, half = sum(self.parameters.values()), self.config.precision != "no"
        parts = {"weights": FULL, "gradients": FULL, "AdamW's moments": 2 * FULL, "average": FULL}
        each = self.processes if sharded else 1
        kept = {name: -(-total * size // each) for name, size in parts.items()}
        if sharded:
            kept["gathered weights"] = self.gathered()
        elif half:
            kept["weights in half precision"] = HALF * total
        return kept | {"activations": self.activations(checkpointing)}

    def gathered(self) -> int:
        """Bytes of whole weights and gradients that a sharded process has at a time: what no block has, and two modules
        of blocks, as the next one is fetched while one computes."""
        modules = spread_modules(self.model)
        inner = {module: sum(size(child) for child in module.children() if child in modules) for module in modules}
        sizes = sorted(size(module) - inner[module] for module in modules)
        half = self.config.precision != "no"
        rest = sum(self.parameters.values()) - sum(sizes)
        return rest * (2 * FULL + HALF * half) + sum(sizes[-2:]) * 2 * (HALF if half else FULL)

    def activations(self, checkpointing: bool | None = None) -> int:
        """Bytes kept for the backward pass of one micro-batch, attention's scores never being kept.

        checkpointing: the configuration's own, if not given
        On CUDA, where layer norms compute in fp32 under autocast, blocks keep about a sixth more.
        """
        config, network = self.config, self.config.model.network
        values = HALF if config.precision != "no" else FULL
        tokens, rows = self.tokens, config.micro_batch(self.processes)
        levels = self.computed * config.noise_levels
        text = 2 * network.text_length * network.decoder_depth * (1 + config.noise_levels * (config.noise_levels > 1))
        encoder, decoder = (n + 2 * network.mlp_ratio for n in (ENCODER_VALUES, DECODER_VALUES))
        if network.rotary:
            encoder, decoder = encoder + ENCODER_TURNED, decoder + DECODER_TURNED
        if config.checkpointing if checkpointing is None else checkpointing:
            kept = network.encoder_depth * tokens + network.decoder_depth * levels
            kept += max(encoder * tokens * (not network.dense), decoder * levels)
        else:
            # The last block of the encoder has keys and values of all tokens, and all else of those that leave it.
            last = 4 * tokens + (encoder - 4) * self.computed
            kept = (network.encoder_depth - 1) * encoder * tokens + last if network.encoder_depth else 0
            kept += network.decoder_depth * decoder * levels
        return rows * network.width * values * (kept + text + OTHER_VALUES * levels)

    def macs(self, checkpointing: bool | None = None) -> int:
        """Multiply-adds of one example's forward and backward pass; those of the time embedding are left out.

        A backward pass is two products for each of the forward pass. Checkpointing computes the blocks again, but for
        the last product of an encoder's block, which nothing in the backward pass needs.
        """
        network, levels, n = self.config.model.network, self.config.noise_levels, self.computed
        d, tokens, length, ratio = network.width, self.tokens, network.text_length, network.mlp_ratio
        decoder, encoder = levels * network.macs(n, length), network.encoder_macs(tokens)
        computed = network.encoder_depth * tokens  # by all blocks of the encoder
        if not network.dense:  # the last block's tokens that are no hole are only keys and values
            encoder -= (tokens - n) * ((2 + 2 * ratio) * d**2 + 2 * d * tokens)
            computed -= tokens - n
        text = length * (network.text_width * d + d**2 + 2 * d**2 * network.decoder_depth)
        total = 3 * (decoder + encoder + text)
        if self.config.checkpointing if checkpointing is None else checkpointing:
            outside = replace(network, decoder_depth=0, encoder_depth=0)
            total += decoder - levels * outside.macs(n, length)
            total += encoder - outside.encoder_macs(tokens) - computed * ratio * d**2
        return total

    def hours(self, tflops: float) -> float:
        """Of one card that computes so many 10¹² operations a second, two to a multiply-add, for the whole training."""
        return 2 * self.macs() * self.config.batch * self.config.steps / (tflops * 1e12) / 3600


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cost_text(cost: TrainingCost, tflops: float | None = None) -> str:
    """A table of the estimates; tflops: that a card reaches, for the time that it takes."""
    config, side = cost.config, cost.config.side
    rows = {
        "model": f"{config.model.name}, {side}×{side} px, {cost.tokens} tokens",
        "parameters": ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in cost.parameters.items()),
        "training": f"{config.steps} steps of {config.batch} examples, {config.micro_batch(cost.processes)} at a time "
        f"on each of {cost.processes} processes, {cost.computed} tokens computed of each",
        "work": f"{cost.macs() * config.batch / 1e12:.1f} T multiply-adds a step, forward and backward",
    }
    if tflops is not None:
        rows["time"] = f"{cost.hours(tflops):,.0f} hours of one card of {tflops:g} TFLOP/s"
    copies, shares = cost.memory(), cost.memory(sharded=True)
    lines = [f"{name:12} {value}" for name, value in rows.items()]
    lines += ["", f"{'GB on each process':28}{'DDP':>8}{'FSDP2':>8}"]
    for name in {**copies, **shares}:
        found = "".join(f"{side[name] / 1e9:8.2f}" if name in side else f"{'':8}" for side in (copies, shares))
        lines.append(f"{name:28}{found}")
    lines.append(f"{'together':28}{sum(copies.values()) / 1e9:8.2f}{sum(shares.values()) / 1e9:8.2f}")
    without, again = (cost.activations(way) / 1e9 for way in (False, True))
    return "\n".join([*lines, "", f"activations  {without:.2f} GB without checkpointing, {again:.2f} GB with it"])
