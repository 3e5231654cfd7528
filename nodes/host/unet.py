"""The UNets of the host that a KV context makes lazy: Stable Diffusion 1 and 2, SDXL, and what was made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...lazydiff.cache.kv_cache import dilate
from ...lazydiff.cache.kv_context import KVContext
from ...lazydiff.cache.unet_call import TiledUNet
from ...lazydiff.cache.unet_parts import UNetParts
from .architectures import Dense

UNET = "Stable Diffusion's UNet"
# FISEdit's convolutions are sparse from 24 latent cells per side on. SD 1.5 at 512 px has a third of its work at 16.
SMALLEST = 16
MOST = 0.6  # of the map in tiles: beyond that, computing all of it costs no more


def is_unet(model: Any) -> bool:
    """Whether a MODEL is a UNet of a known kind."""
    return unet_parts(model.model.diffusion_model) is not None


def unet_parts(network: Any) -> UNetParts | None:
    """The parts of a network that is a UNet of a known kind."""
    if type(network).__name__ != "UNetModel":
        return None
    try:
        return UNetParts.of(network)
    except ValueError:
        return None


def hole_cells(context: KVContext, ring: int) -> Tensor:
    """[h, w] bool: latent cells of all holes of a context, with a ring around them."""
    return dilate(context.hole, ring).cells(1)[0, 0]


class UNetLayout:
    """Which tiles of a UNet's maps are computed, on a context."""

    keep_text = False

    def __init__(self, network: Any, context: KVContext, device: torch.device):
        parts = unet_parts(network)
        assert parts is not None
        hole, computed = (hole_cells(context, ring).to(device) for ring in (0, context.settings.ring))
        self.unet = TiledUNet(parts, hole, computed, SMALLEST)
        self.everything = self.unet.share > MOST
        places = {("middle", 0): network.middle_block}
        for kind, blocks in (("input", network.input_blocks), ("output", network.output_blocks)):
            places |= {(kind, i): block for i, block in enumerate(blocks)}
        attention = {module: level for module, level in parts.attentions.items() if level < len(self.unet.levels)}
        self.levels = {  # of the blocks whose transformers run on tiles
            place: self.unet.levels[attention[module]]
            for place, block in places.items() for module in block.modules() if module in attention
        }  # fmt: skip

    def strips(self, control: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        """A ControlNet's residuals [B, C, H, W] where the map is in tiles."""
        if control is None:
            return None

        def strip(residual: Tensor | None) -> Tensor | None:
            if residual is None:
                return None
            if residual.shape[2:] not in self.unet.pyramid.sizes:
                raise Dense("its ControlNet is not of the canvas's size")
            level = self.unet.pyramid.sizes.index(tuple(residual.shape[2:]))
            return self.unet.levels[level].strip(residual) if level < len(self.unet.levels) else residual

        return {place: [strip(residual) for residual in residuals] for place, residuals in control.items()}


def step_text(context: KVContext) -> str:
    """What a lazy step of a UNet computes, in words."""
    layout = UNetLayout(context.model().diffusion_model, context, torch.device("cpu"))
    if layout.everything:
        return "every step computes everything: the hole is most of the canvas, or this too small for tiles"
    count = layout.unet.levels[0].count
    tiles = "one rectangle" if count == 1 else f"{count} tiles"
    return f"a sampling step: {layout.unet.share:.0%} of the canvas, in {tiles}"
