"""The two halves of a Stable Diffusion VAE as a list of stages, each of which knows what of its input a part needs.

The modules of an `AutoencoderKL` are called, never copied: one walk finds them under diffusers' names or under the
original ones, which ComfyUI keeps. What joins them is done by a `StagePass`: normalising, attending, and cutting off
what a convolution at the edge of a rectangle has computed from padding instead of from its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from ..sparse.boxes import Box, Size


class Patch(NamedTuple):
    """A rectangle of a feature map with its values."""

    x: Tensor  # [B, C, h, w]
    box: Box
    size: Size  # of the whole map

    def cut(self, box: Box) -> Patch:
        """A part of it."""
        top, left = box.top - self.box.top, box.left - self.box.left
        return Patch(Box(top, left, top + box.size[0], left + box.size[1]).of(self.x), box, self.size)


class StagePass(Protocol):
    """One run through the stages, on any number of patches of the same map at once."""

    def norm(self, module: nn.Module, patches: list[Patch], silu: bool = True) -> list[Patch]: ...

    def conv(self, module: nn.Module, patches: list[Patch]) -> list[Patch]: ...

    def call(self, module: nn.Module, x: Tensor) -> Tensor: ...

    def attend(self, queries: list[Patch], keys: list[Patch], values: list[Patch]) -> list[Patch]: ...


class Stage(Protocol):
    def after(self, size: Size) -> Size:
        """Size of the output map for an input map of that size."""

    def before(self, box: Box, size: Size) -> Box:
        """Part of the input, of that size, that a part of the output is computed from (but for norms and attention)."""

    def reach(self, box: Box, size: Size) -> Box:
        """Part of the output that a part of the input, of that size, takes part in (likewise)."""

    def apply(self, run: StagePass, patches: list[Patch]) -> list[Patch]: ...


class _SameSize:
    margin = 0

    def after(self, size: Size) -> Size:
        return size

    def before(self, box: Box, size: Size) -> Box:
        return box.grown(self.margin, size)

    def reach(self, box: Box, size: Size) -> Box:
        return box.grown(self.margin, size)


class Conv(_SameSize):
    """A convolution alone, the first or one of kernel 1, or with a norm before it, the last."""

    def __init__(self, conv: Any, norm: nn.Module | None = None):
        self.conv, self.normalise = conv, norm
        self.margin = conv.kernel_size[0] // 2

    def apply(self, run: StagePass, patches: list[Patch]) -> list[Patch]:
        return run.conv(self.conv, patches if self.normalise is None else run.norm(self.normalise, patches))


class Residual(_SameSize):
    margin = 2

    def __init__(self, block: Any):
        self.block = block
        self.shortcut = _first(block, "conv_shortcut", "nin_shortcut")

    def apply(self, run: StagePass, patches: list[Patch]) -> list[Patch]:
        block = self.block
        branches = run.conv(block.conv1, run.norm(block.norm1, patches))
        branches = run.conv(block.conv2, run.norm(block.norm2, branches))
        return _added(patches, branches, run, self.shortcut)


class Attention(_SameSize):
    def __init__(self, block: Any):
        if getattr(block, "heads", 1) != 1:
            raise _unknown("an attention of several heads")
        self.norm = _first(block, "group_norm", "norm")
        self.q, self.k, self.v = (_first(block, f"to_{name}", name) for name in "qkv")
        self.out = block.to_out[0] if hasattr(block, "to_out") else block.proj_out

    def apply(self, run: StagePass, patches: list[Patch]) -> list[Patch]:
        normal = run.norm(self.norm, patches, silu=False)
        q, k, v = ([p._replace(x=_project(run, module, p.x)) for p in normal] for module in (self.q, self.k, self.v))
        branches = [p._replace(x=_project(run, self.out, p.x)) for p in run.attend(q, k, v)]
        # Of two layouts in memory a sum takes the first one's, and the layout decides which kernels come after: as the
        # two codes have it.
        return _added(branches, patches, run) if isinstance(self.out, nn.Linear) else _added(patches, branches, run)


class Up:
    """Twice the size by repetition, then a convolution."""

    def __init__(self, conv: nn.Module):
        self.conv = conv

    def after(self, size: Size) -> Size:
        return 2 * size[0], 2 * size[1]

    def before(self, box: Box, size: Size) -> Box:
        return box.grown(1, self.after(size)).scaled(1, 2)

    def reach(self, box: Box, size: Size) -> Box:
        return box.scaled(2).grown(1, self.after(size))

    def apply(self, run: StagePass, patches: list[Patch]) -> list[Patch]:
        larger = [
            Patch(F.interpolate(p.x, scale_factor=2.0, mode="nearest"), p.box.scaled(2), self.after(p.size))
            for p in patches
        ]
        return run.conv(self.conv, larger)


class Down:
    """A convolution of stride 2, which reads one row and one column of zeros beyond the lower right border."""

    def __init__(self, conv: Any):
        if tuple(conv.padding) != (0, 0):
            raise _unknown("a downsampling with other padding")
        self.conv = conv

    def after(self, size: Size) -> Size:
        return size[0] // 2, size[1] // 2

    def before(self, box: Box, size: Size) -> Box:
        top, left, bottom, right = box.scaled(2)
        return Box(top, left, min(bottom + 1, size[0]), min(right + 1, size[1]))

    def reach(self, box: Box, size: Size) -> Box:
        top, left, bottom, right = box
        return Box((top - 1) // 2, (left - 1) // 2, -(-bottom // 2), -(-right // 2)).grown(0, self.after(size))

    def apply(self, run: StagePass, patches: list[Patch]) -> list[Patch]:
        # A patch that ends inside the map has the row and column it needs beyond the last pair: the zeros are not read.
        result = []
        for patch in patches:
            half = Box(*(side // 2 for side in patch.box))
            result.append(Patch(run.call(self.conv, F.pad(patch.x, (0, 1, 0, 1))), half, self.after(patch.size)))
        return result


def decoder_stages(vae: Any) -> list[Stage]:
    """Latents as the model stores them -> image; `vae` has a `decoder` and perhaps a `post_quant_conv`.

    Errors: ValueError for a decoder that is not made of the parts of Stable Diffusion's.
    """
    net = vae.decoder
    stages = [*_optional_conv(vae, "post_quant_conv"), Conv(net.conv_in), *_middle(net)]
    for level in net.up_blocks if hasattr(net, "up_blocks") else reversed(net.up):
        stages += [Residual(block) for block in _first(level, "resnets", "block")]
        stages += [Up(one.conv) for one in _resamplers(level, "upsamplers", "upsample")]
    stages.append(Conv(net.conv_out, _first(net, "conv_norm_out", "norm_out")))
    return _checked(stages, net)


def encoder_stages(vae: Any) -> list[Stage]:
    """Image -> moments of the latents (mean and log-variance); `vae` has an `encoder` and perhaps a `quant_conv`.

    Errors: ValueError for an encoder that is not made of the parts of Stable Diffusion's.
    """
    net = vae.encoder
    stages: list[Stage] = [Conv(net.conv_in)]
    for level in _first(net, "down_blocks", "down"):
        stages += [Residual(block) for block in _first(level, "resnets", "block")]
        stages += [Down(one.conv) for one in _resamplers(level, "downsamplers", "downsample")]
    stages += [*_middle(net), Conv(net.conv_out, _first(net, "conv_norm_out", "norm_out"))]
    return [*_checked(stages, net), *_optional_conv(vae, "quant_conv")]


def sizes(stages: Sequence[Stage], size: Size) -> list[Size]:
    """Of the map before every stage and after the last."""
    result = [size]
    for stage in stages:
        result.append(stage.after(result[-1]))
    return result


def needed(stages: Sequence[Stage], target: Box, size: Size) -> list[Box]:
    """Backwards from a box of the output: what has to be known before every stage, and the box itself."""
    boxes = [target]
    for stage, before in zip(reversed(stages), reversed(sizes(stages, size)[:-1]), strict=True):
        boxes.append(stage.before(boxes[-1], before))
    return boxes[::-1]


def reached(stages: Sequence[Stage], source: Box, size: Size) -> Box:
    """Forwards from a box of the input: the output that depends on it."""
    for stage, before in zip(stages, sizes(stages, size), strict=False):
        source = stage.reach(source, before)
    return source


def _middle(net: Any) -> list[Stage]:
    if hasattr(net, "mid_block"):
        first, *others = net.mid_block.resnets
        attentions = [block for block in net.mid_block.attentions if block is not None]
    else:
        first, others, attentions = net.mid.block_1, [net.mid.block_2], [net.mid.attn_1]
    return [Residual(first), *map(Attention, attentions), *map(Residual, others)]


def _resamplers(level: Any, *names: str) -> Iterable[Any]:
    found = _first(level, *names)
    return found if isinstance(found, nn.ModuleList) else [found] if found is not None else []


def _optional_conv(vae: Any, name: str) -> list[Stage]:
    conv = getattr(vae, name, None)
    return [] if conv is None else [Conv(conv)]


def _first(module: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(module, name, None)) is not None), None)


def _project(run: StagePass, module: nn.Module, x: Tensor) -> Tensor:
    """Channels of x [B, C, h, w] through a linear layer, or a convolution that does the same."""
    if not isinstance(module, nn.Linear):
        return run.call(module, x)
    return run.call(module, x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def _added(
    patches: list[Patch], branches: list[Patch], run: StagePass, shortcut: nn.Module | None = None
) -> list[Patch]:
    """What a residual branch has left of each patch, added to the patch."""
    result = []
    for patch, branch in zip(patches, branches, strict=True):
        x = patch.cut(branch.box).x
        result.append(branch._replace(x=(x if shortcut is None else run.call(shortcut, x)) + branch.x))
    return result


def _checked(stages: list[Stage], net: nn.Module) -> list[Stage]:
    """The stages, when they hold every module of the network that has weights."""

    def leaves(module: Any) -> set[nn.Module]:
        return {m for m in module.modules() if next(m.parameters(recurse=False), None) is not None}

    def parts(stage: Stage) -> Iterable[nn.Module]:
        for part in vars(stage).values():
            if isinstance(part, nn.Module):
                yield from leaves(part)

    left_out = leaves(net) - {part for stage in stages for part in parts(stage)}
    if left_out:
        raise _unknown(next(name for name, module in net.named_modules() if module in left_out))
    return stages


def _unknown(part: str) -> ValueError:
    return ValueError(f"this VAE cannot be run in part ({part}): use the full decode and encode with it")
