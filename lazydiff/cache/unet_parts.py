"""The parts of a Stable Diffusion UNet that see more than one cell, each with the resolution that it works at.

One walk finds them under diffusers' names or under the original ones, which ComfyUI keeps; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import nn

KNOWN = {"ResBlock", "ResnetBlock2D", "SpatialTransformer", "Transformer2DModel"}  # beside what changes resolution


@dataclass(eq=False)
class UNetParts:
    """Modules of a UNet with their resolutions: 0 is that of the latents, each further one half as wide.

    convs: 3×3 ones, but for the first; of what changes the resolution, that of its output if it grows, else its input's
    """

    first: nn.Module
    last: nn.Module
    convs: dict[nn.Module, int] = field(default_factory=dict)
    halving: set[nn.Module] = field(default_factory=set)  # of the convs
    doubling: dict[nn.Module, int] = field(default_factory=dict)  # that hold one of the convs
    norms: dict[Any, int] = field(default_factory=dict)
    attentions: dict[Any, int] = field(default_factory=dict)  # self-attentions, with `to_k` and `to_v`
    resolutions: int = 1

    @classmethod
    def of(cls, net: Any) -> UNetParts:
        """Errors: ValueError for a network that is not made of the parts of Stable Diffusion's."""
        original = hasattr(net, "input_blocks")
        if original:
            parts = cls(net.input_blocks[0][0], net.out[-1])
            layers, ends = original_layers(net), (net.out[0], net.out[-1])
        else:
            parts = cls(net.conv_in, net.conv_out)
            layers, ends = diffusers_layers(net), (net.conv_norm_out, net.conv_out)
        level = 0
        for layer in layers:
            conv = getattr(layer, "op", None) or getattr(layer, "conv", None)
            if conv is None:
                parts.add(layer, level)
            elif conv.stride == (2, 2) and conv.padding == (1, 1):
                parts.convs[conv] = level
                parts.halving.add(conv)
                level += 1
                parts.resolutions = level + 1
            elif conv.stride == (1, 1):
                level -= 1
                parts.convs[conv] = parts.doubling[layer] = level
            else:
                raise unknown_layer(layer)
        parts.norms[ends[0]] = parts.convs[ends[1]] = 0
        return parts

    def add(self, layer: Any, level: int) -> None:
        if type(layer).__name__ not in KNOWN or getattr(layer, "updown", False):
            raise unknown_layer(layer)
        for module in layer.modules():
            if isinstance(module, nn.GroupNorm):
                self.norms[module] = level
            elif isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                self.convs[module] = level
            elif hasattr(module, "attn1") and not getattr(module, "disable_self_attn", False):
                self.attentions[module.attn1] = level


def original_layers(net: Any) -> Iterator[Any]:
    return chain.from_iterable(chain(net.input_blocks[1:], [net.middle_block or ()], net.output_blocks))


def diffusers_layers(net: Any) -> Iterator[Any]:
    for block in (*net.down_blocks, net.mid_block, *net.up_blocks):
        for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
            yield from getattr(block, name, None) or ()


def unknown_layer(layer: Any) -> ValueError:
    return ValueError(f"a {type(layer).__name__} in this UNet is of an unknown kind")
