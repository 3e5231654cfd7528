"""How much each place of a picture attends to each word, seen while a MODEL of the host's runs.

Nothing is replaced: what stands between a network and its attention function looks at queries and keys, and then calls
what would have been called, with what it would have been called with.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .architectures import ARCHITECTURES, downscale, token_size
from .model import LazyModel, model_name

KEY = "lazydiffusion_maps"
SCALE = 32  # px per cell of a map, at which InstDiffEdit found objects to be told apart best
SMALLEST = 16  # cells that the maps of small pictures have per side, of networks with so many tokens
MIDDLE = 0.3, 0.75  # of a transformer's blocks, those that are looked at
SAMPLED = (0, 4, 9)  # of the ten attentions in a row that SDXL has, those that are looked at
TRANSFORMERS = (
    "Flux", "Chroma", "OpenAISignatureMMDITWrapper", "QwenImageTransformer2DModel", "NextDiT", "MMDiT", "PixArtMS",
)  # fmt: skip
REGISTERS = {"MMDiT": 8}  # AuraFlow's tokens before those of the text


class Sight(NamedTuple):
    """One call of the model: what its observer needs to know of it."""

    rows: list[int]  # of the batch, those of the positive prompt
    grid: tuple[int, int]  # of the places that attend, at the scale where they are looked at
    maps: list[Tensor]  # [rows, h, w, places] of each attention that was looked at


NOTHING = Sight([], (0, 0), [])  # between calls of the model


class AttentionObserver:
    """Sees the attention to the positive prompt's words in every call of a MODEL.

    places: which of the text's tokens maps are wanted of
    length: how many tokens the text has
    receive: called after each call of the model, with maps [rows, h, w, places] of its rows of the positive prompt: the
        softmax over all tokens of the text, averaged over heads and layers; where text and picture attend to each other
        in one sequence, the softmax over `places` alone
    Errors: ValueError for a network whose attention to its text is not known.
    Source: the layers are InstDiffEdit's; for transformers our own choice.
    """

    def __init__(self, model: Any, places: Sequence[int], length: int, receive: Callable[[Tensor], None]):
        self.network = model.model.diffusion_model
        self.name = "LazyDecoder" if isinstance(model.model, LazyModel) else type(self.network).__name__
        self.see = self.kind(model_name(model))
        self.places, self.length, self.receive = torch.tensor(places), length, receive
        self.token = model.model.network.token if self.name == "LazyDecoder" else token_size(model)
        self.cells = self.token // downscale(model)  # of the latent, per side of a token
        self.sight = NOTHING
        self.count = 0  # attentions to the text so far in this call of the model
        self.expected = False  # whether a UNet's next attention is to the text

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionObserver:
        return self  # the host copies a MODEL's options

    def kind(self, model: str) -> Callable[..., None]:
        """What looks at an attention of this network."""
        if self.name == "UNetModel":
            return self.see_unet
        if self.name == "LazyDecoder":
            return self.see_own
        if self.name in TRANSFORMERS:
            return self.see_joint
        raise ValueError(
            f"how {model} attends to its prompt is not known: attention masks are found by Stable Diffusion 1.5 and "
            "SDXL, PixArt, Flux, Chroma, SD3, Qwen-Image, Lumina 2, Z-Image, AuraFlow and the models of this pack"
        )

    def attach(self, model: Any) -> Any:
        """A clone of the MODEL that is observed."""
        model = model.clone()
        model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.apply_model)
        if self.name == "PixArtMS":  # its attentions are not told the call's options
            for i, block in enumerate(self.network.blocks):
                path = f"diffusion_model.blocks.{i}.cross_attn.forward"
                forward = model.get_model_object(path)
                # The host leaves patches on a network until it uses it for something else.
                model.add_object_patch(path, partial(in_pixart, weakref.ref(self), block.cross_attn, forward))
        return model

    def apply_model(
        self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
        transformer_options: dict[str, Any] | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """One call of the model, in latents."""
        options = dict(transformer_options or {})
        parts = options.get("cond_or_uncond", [0])
        size = len(x) // len(parts)
        rows = [i * size + row for i, role in enumerate(parts) if role == 0 for row in range(size)]
        if not rows:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        self.sight, self.count, self.expected = Sight(rows, self.grid(x), []), 0, False
        previous = options.get("optimized_attention_override")  # another pack's stays, between ours and the host's
        options["optimized_attention_override"] = partial(self.attention, previous)
        if self.name == "UNetModel":
            patches = options.get("patches", {})
            options["patches"] = {**patches, "attn2_patch": [*patches.get("attn2_patch", []), self.announce]}
        try:
            denoised = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
            maps = self.sight.maps
        finally:
            self.sight = NOTHING
        if maps:
            self.receive(torch.stack(maps).mean(0))
        return denoised

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Places per side that attend: a UNet's at its scale, a transformer's tokens."""
        step = SCALE // self.token if self.name == "UNetModel" else self.cells
        return -(-x.shape[-2] // step), -(-x.shape[-1] // step)

    def attention(self, previous: Callable[..., Tensor] | None, function: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Stands between a block and the attention function of the host's."""
        if self.sight.rows:
            self.look(*args, **kwargs)
        return previous(function, *args, **kwargs) if previous else function(*args, **kwargs)

    def look(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *others: Any,
        skip_reshape: bool = False, transformer_options: dict[str, Any] | None = None, **unused: Any,
    ) -> None:  # fmt: skip
        if not skip_reshape:
            q, k = (heads_apart(x, heads) for x in (q, k))
        self.see(q, k, mask, transformer_options or {})

    # q: [B, heads, places, d], k: [B, heads, tokens, d], as the attention function sees them

    def see_unet(self, q: Tensor, k: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """The attentions at one scale, in down and up blocks alike."""
        expected, self.expected = self.expected, False
        height, width = self.sight.grid
        if expected and q.shape[2] == height * width and options.get("block_index", 0) in SAMPLED:
            self.keep(q, k)

    def announce(self, q: Tensor, k: Tensor, v: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The host calls this before an attention to the text, and nothing before one of the picture to itself."""
        self.expected = True
        return q, k, v

    def see_own(self, q: Tensor, k: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Attentions to the text, which is padded; those of the picture to itself may be left out by gates."""
        if of_two_lengths(q, k):
            self.count += 1
            if self.in_the_middle(self.count - 1, len(self.network.blocks)):
                self.keep(q, k, mask)

    def see_joint(self, q: Tensor, k: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Text first, then the picture, then what else there is; other sequences are of text or of picture alone."""
        shape = ARCHITECTURES[self.name]
        height, width = self.sight.grid
        registers, total = REGISTERS.get(self.name, 0), height * width
        start = registers + self.length
        if shape.joint_output:  # the text is filled up too
            start = q.shape[2] - total - shape.tail(self.network, total)
        if q.shape[2] != k.shape[2] or start < registers + self.length or q.shape[2] < start + total:
            return
        self.count += 1
        if self.in_the_middle(self.count - 1, sum(len(getattr(self.network, each.blocks)) for each in shape.stages)):
            k = k[:, :, registers + self.places.to(k.device)]
            self.put(attention_to(q[self.sight.rows, :, start : start + total], k[self.sight.rows]))

    def pixart(self, module: Any, forward: Callable[..., Tensor], x: Tensor, text: Tensor, *others: Any) -> Tensor:
        """Around a PixArt attention to the text."""
        self.see_pixart(module, x, text)
        return forward(x, text, *others)

    def see_pixart(self, module: Any, x: Tensor, text: Tensor) -> None:
        self.count += 1
        if self.in_the_middle(self.count - 1, len(self.network.blocks)):
            q, k, _ = pixart_heads(module, x, text)
            self.keep(q, k)

    def in_the_middle(self, block: int, blocks: int) -> bool:
        first, end = (round(share * blocks) for share in MIDDLE)
        return first <= block < max(end, first + 1)

    def keep(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> None:
        """Of an attention to the text alone. The host repeats a text that goes in one batch with a longer one."""
        height, width = self.sight.grid
        if q.shape[2] != height * width or k.shape[2] < self.length:
            return
        rows = self.sight.rows
        if mask is not None:
            mask = mask.expand(len(q), *mask.shape[1:])[rows]
        maps = attention_to(q[rows], k[rows], mask)
        if k.shape[2] % self.length == 0:
            maps = maps.unflatten(2, (-1, self.length)).sum(2)
        self.put(maps[..., self.places.to(maps.device)])

    def put(self, maps: Tensor) -> None:
        """maps: [rows, places that attend, tokens]"""
        height, width = self.sight.grid
        maps = maps.unflatten(1, (height, width))
        pool = min(SCALE // self.token, min(height, width) // SMALLEST)
        if self.name != "UNetModel" and pool > 1:
            maps = F.avg_pool2d(maps.movedim(-1, 1), pool, ceil_mode=True).movedim(1, -1)
        self.sight.maps.append(maps)


def in_pixart(
    observer: weakref.ref[AttentionObserver], module: Any, forward: Callable[..., Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    """In place of the method of a PixArt attention to the text."""
    there = observer()
    if there is None or not there.sight.rows:
        return forward(*args, **kwargs)
    return there.pixart(module, forward, *args, **kwargs)


def pixart_heads(module: Any, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, heads, tokens, d] of a PixArt attention to the text, all rows' in one."""
    q = heads_apart(module.q_linear(x), module.num_heads)
    k, v = module.kv_linear(text).reshape(len(x), -1, 2, *q.shape[1::2]).permute(2, 0, 3, 1, 4)
    return q, k, v


def of_two_lengths(q: Tensor, k: Tensor) -> bool:
    """Whether an attention of ours is to the text: one of the picture to itself has as many keys as queries."""
    return q.shape[-2] != k.shape[-2]


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """[B, tokens, heads·d] or [B, tokens, heads, d] -> [B, heads, tokens, d]"""
    return x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


def attention_to(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over heads of the softmax of q · k [B, n, tokens], head by head: the memory is that of one head's.

    q: [B, heads, n, d]; k: [B, heads, tokens, d]; mask: [B, heads or 1, n or 1, tokens], added to the logits
    """
    total = q.new_zeros(len(q), q.shape[2], k.shape[2], dtype=torch.float32)
    for head in range(q.shape[1]):
        logits = q[:, head].float() @ k[:, head].float().mT / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits + mask[:, min(head, mask.shape[1] - 1)]
        total += logits.softmax(-1)
    return total / q.shape[1]
