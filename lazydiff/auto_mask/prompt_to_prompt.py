"""The attention to one prompt, kept for another: what stays the same between two prompts attends the same.

Two denoisings of two prompts differ where the changed words act, but also wherever the other words are pushed around by
them. With the source prompt's cross-attention kept for the words that both prompts have, only what the changed words do
is left (Prompt-to-Prompt, Hertz et al. 2022, which FISEdit takes to steady its masks).

    shared_tokens   which tokens are of words that both prompts have
    Stabiliser      attention to the source that is remembered, and attention to the target that takes it
    stabilised      denoisers of our own models that attend so
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher

import torch
from torch import Tensor

from ..model.decoder import LazyDecoder
from ..model.layers import AttentionFunction, attention_maps
from ..sampling.samplers import Denoiser
from .attention_mask import Word

LEAST = 0.1  # sum of shares, below which a place attends less instead of to what is next to nothing


def shared_tokens(source: Sequence[Word], target: Sequence[Word]) -> list[tuple[int, int]]:
    """Tokens of the words that two prompts have in the same order: places in the source and in the target."""
    matcher = SequenceMatcher(None, [word.text for word in source], [word.text for word in target], autojunk=False)
    words = [(source[a + i], target[b + i]) for a, b, size in matcher.get_matching_blocks() for i in range(size)]
    same = [(one.tokens, other.tokens) for one, other in words if len(one.tokens) == len(other.tokens)]
    return [places for tokens in same for places in zip(*tokens, strict=True)]


class Stabiliser:
    """Attention of a picture to two prompts, whose calls come in the same order: first the source's, then the target's.

    shared: tokens of both prompts, as of `shared_tokens`
    home: where what the source's calls attended to waits for the target's; None: where they were made
    Both calls as an attention function: q: [B, heads, n, d]; k, v: [B, heads, L, d]; mask: of `attention_maps`
    Source: Prompt-to-Prompt, section 3.2; FISEdit (Yu et al. 2024); that a place's shares still add up to 1 is our own.
    """

    def __init__(self, shared: Sequence[tuple[int, int]], home: torch.device | None = None):
        self.of, self.to = ([pair[side] for pair in shared] for side in (0, 1))
        self.home = home
        self.kept: deque[Tensor] = deque()  # [B, heads, n, shared]

    def source(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        maps = attention_maps(q, k, mask)
        kept = maps[..., self.of].to(v.dtype)
        self.kept.append(kept.to(device=self.home))
        return self.attend(maps, self.of, kept, v)

    def target(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Errors: ValueError for a call to which none of the source's belongs."""
        maps = attention_maps(q, k, mask)
        kept = self.kept.popleft() if self.kept else None
        if kept is None or kept.shape[:-1] != maps.shape[:-1]:
            raise ValueError(
                "the two prompts were not denoised in the same steps: choose a sampler whose steps do not depend on "
                "the prompt, such as euler"
            )
        return self.attend(maps, self.to, kept, v)

    @staticmethod
    def attend(maps: Tensor, places: list[int], kept: Tensor, v: Tensor) -> Tensor:
        """The same arithmetic for both prompts, so that equal ones stay equal."""
        maps[..., places] = kept.to(maps)
        return (maps / maps.sum(-1, keepdim=True).clamp(min=LEAST)).to(v.dtype) @ v


def stabilised(decoder: LazyDecoder, prompts: Sequence[Denoiser], stabiliser: Stabiliser) -> list[Denoiser]:
    """Denoisers of a source and a target prompt, to be called in turn, with a stabiliser's attention to the text."""

    def bound(denoise: Denoiser, attention: AttentionFunction) -> Denoiser:
        def predict(z: Tensor, sigma: float) -> tuple[Tensor, Tensor | None]:
            with attending(decoder, attention):
                return denoise.predict(z, sigma)

        return Denoiser(predict)

    pairs = zip(prompts, (stabiliser.source, stabiliser.target), strict=True)
    return [bound(denoise, attention) for denoise, attention in pairs]


@contextmanager
def attending(decoder: LazyDecoder, attention: AttentionFunction) -> Iterator[None]:
    """Let every block attend to the text by another function."""
    modules = [block.cross_attn for block in decoder.blocks]
    usual = [module.attention for module in modules]
    for module in modules:
        module.attention = attention
    try:
        yield
    finally:
        for module, function in zip(modules, usual, strict=True):
            module.attention = function
