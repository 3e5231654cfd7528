"""Attention to the text of the host's MODELs, computed by a function of ours while a prompt is followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ...lazydiff.auto_mask.prompt_to_prompt import Stabiliser, shared_tokens
from ...lazydiff.model.layers import AttentionFunction
from .attention_maps import AttentionObserver, heads_apart, of_two_lengths, pixart_heads
from .trajectory import Start, follow
from .words import Prompt, read_prompt

CROSS = ("UNetModel", "PixArtMS", "LazyDecoder")  # networks that attend to their text, and to nothing else with it


class StabilisedPrompts:
    """A source and a target prompt for a MODEL; the words that they share attend in the target as in the source.

    source, target: conditionings; texts: what they were made of by `clip`
    Errors: ValueError for a model whose text and picture go through one attention, and for texts that do not belong to
        the conditionings.
    """

    def __init__(self, model: Any, clip: Any, source: Any, target: Any, texts: tuple[str, str]):
        self.source, self.target = source, target
        read = [read_text(clip, *given) for given in zip(("source", "target"), (source, target), texts, strict=True)]
        tokens = shared_tokens(*(prompt.words for prompt in read))
        self.shared = [(read[0].places[of], read[1].places[to]) for of, to in tokens]
        self.stabiliser = Stabiliser(self.shared, mm.intermediate_device())
        attends = self.stabiliser.source, self.stabiliser.target
        self.models = [
            AttentionInstead(model, prompt.length, attend).attach(model)
            for prompt, attend in zip(read, attends, strict=True)
        ]

    def follow(self, start: Start, cfg: float, negative: Any, steps: int) -> list[list[Tensor]]:
        """Latents of the source and of the target, each as of `trajectory.follow`.

        Errors: ValueError when the model's attention to its text was not seen, or is another in each prompt.
        """
        before = follow(self.models[0], start, cfg, self.source, negative, steps)
        if not self.stabiliser.kept:
            raise ValueError(
                "the stabiliser saw no attention to the prompt alone: another node adds to it. Empty source_text and "
                "target_text, or give the MODEL as it is before that node"
            )
        return [before, follow(self.models[1], start, cfg, self.target, negative, steps)]


def read_text(clip: Any, name: str, conditioning: Any, text: str) -> Prompt:
    """A prompt whose conditioning the user has made."""
    prompt = read_prompt(clip, text)
    if len(conditioning) != 1:
        raise ValueError(f"the {name} is of {len(conditioning)} prompts: the stabiliser compares single ones")
    length = conditioning[0][0].shape[1]
    if length != prompt.length:
        raise ValueError(
            f"{name}_text “{text}” is not what the {name} was made of: it has {prompt.length} tokens, the {name} "
            f"{length}. Give the text of the node that makes it, and its CLIP"
        )
    return prompt


class AttentionInstead(AttentionObserver):
    """Lets a function of ours attend to the positive prompt in every call of a MODEL.

    length: how many tokens the text has
    attend: of queries [B, heads, n, d], keys and values [B, heads, tokens, d], and a mask that is added or None
    """

    def __init__(self, model: Any, length: int, attend: AttentionFunction):
        super().__init__(model, (), length, lambda maps: None)
        self.attend = attend

    def kind(self, model: str) -> Callable[..., None]:
        if self.name not in CROSS:
            raise ValueError(
                f"{model} mixes words and picture in one attention, or is not known: the stabiliser needs a model with "
                "cross-attention (Stable Diffusion 1.5, SDXL, PixArt and this pack's). Disconnect clip, and empty "
                "source_text and target_text"
            )
        return super().kind(model)

    def attention(
        self, previous: Callable[..., Tensor] | None, function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int,
        mask: Tensor | None = None, *others: Any, skip_reshape: bool = False, skip_output_reshape: bool = False,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        given = {"mask": mask, "skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape, **options}
        args = (function, q, k, v, heads, *others)
        out = previous(*args, **given) if previous else args[0](*args[1:], **given)
        if not self.sight.rows or not self.to_text(q, k):
            return out
        if not skip_reshape:
            q, k, v = (heads_apart(x, heads) for x in (q, k, v))
        return self.replace(out, q, k, v, mask, lambda y: y if skip_output_reshape else joined(y))

    def to_text(self, q: Tensor, k: Tensor) -> bool:
        """Whether this call of the attention function is one to the text."""
        if self.name == "UNetModel":
            expected, self.expected = self.expected, False
            return expected
        return of_two_lengths(q, k)

    def pixart(self, module: Any, forward: Callable[..., Tensor], x: Tensor, text: Tensor, *others: Any) -> Tensor:
        q, k, v = pixart_heads(module, x, text)
        return self.replace(forward(x, text, *others), q, k, v, None, lambda y: module.proj(joined(y)))

    def replace(
        self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, finish: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """An attention's output, in the positive prompt's rows ours; a text to which another pack has added tokens is
        left alone."""
        rows = self.sight.rows
        q, k, v = q[rows], k[rows], v[rows]
        if mask is not None:
            mask = mask.expand(len(out), *mask.shape[1:])[rows]
        elif k.shape[2] % self.length:
            return out
        else:  # the host repeats a text that goes in one batch with a longer one, which changes nothing
            k, v = k[:, :, : self.length], v[:, :, : self.length]
        out[rows] = finish(self.attend(q, k, v, mask)).to(out)
        return out


def joined(x: Tensor) -> Tensor:
    """[B, heads, n, d] -> [B, n, heads·d]"""
    return x.transpose(1, 2).flatten(2)
