"""Attention masks: where a picture shows what a prompt's words say, read off the model's own cross-attention.

InstDiffEdit (Zou et al. 2024): a picture is made half noisy and denoised again with a prompt; where its cross-attention
to the words goes, averaged over layers, seeds and the steps so far, tells the object that the prompt speaks of. Words
that are looked for where the object is count as the object, words that are looked for elsewhere as background.

    Word, words_of, point_at    words of a prompt, their tokens, and those that a user points at
    words_to_maps … threshold   the method in the order of its steps
    AttentionMaps               all of it, fed step by step
    attention_mask              all of it, with a model of ours

Maps are float, [..., H, W] in 0…1; a step whose published number was found for 8-bit maps of 64×64 has that number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.decoder import LazyDecoder
from ..model.layers import CrossAttention, attention_maps
from ..model.lazydiffusion import LazyDiffusion
from ..sampling.samplers import euler_step
from .evidence import Evidence
from .maps import Mean, blur, by_maximum, normalise, resize
from .noisy_picture import Found, NoisyPicture, noise_levels

# What words are compared to: the inverse of the map of the start token (CLIP) or of the token that draws attention
# whatever is looked for (T5 has no start token), or where the guided noise differs from the unguided.
Reference = Literal["start", "sink", "difference"]


class Thresholds(NamedTuple):
    """Of InstDiffEdit's benchmark; its single-image script has 0.3 for `background` and `mask`."""

    object: float = 0.9  # similarity with the reference word from which a word is the object
    background: float = 0.6  # and up to which it is background
    mask: float = 0.2


class Word(NamedTuple):
    text: str
    tokens: tuple[int, ...]  # places in the text that the model attends to


def words_of(pieces: Sequence[str]) -> list[Word]:
    """Words of a prompt of sentencepiece pieces ("▁tre", "e", "</s>"): each begins at "▁", special tokens are none."""
    words: list[Word] = []
    for place, piece in enumerate(pieces):
        if piece.startswith("<") and piece.endswith(">"):
            continue
        if piece.startswith("▁") or not words:
            words.append(Word(piece.lstrip("▁"), (place,)))
        else:
            words[-1] = Word(words[-1].text + piece, (*words[-1].tokens, place))
    return [word for word in words if word.text]


def point_at(words: Sequence[Word], wanted: str) -> list[int]:
    """Places among the words of those that a user wants, separated by commas or spaces; whatever their case.

    Errors: ValueError that names the prompt's words, for a word that is not among them.
    """

    def plain(text: str) -> str:
        return text.casefold().strip(".,:;!?\"'()[]“”")

    places: list[int] = []
    for name in wanted.replace(",", " ").split():
        found = [i for i, word in enumerate(words) if plain(word.text) == plain(name)]
        if not found:
            there = ", ".join(word.text for word in words)
            raise ValueError(f"there is no word “{name}” in the prompt: choose among {there}")
        places += found
    return places


def words_to_maps(attention: Tensor, spans: Sequence[Sequence[int]], size: tuple[int, int]) -> Tensor:
    """Attention [h, w, tokens] -> where each word is looked for [words, *size]; spans: each word's tokens (step 2)."""
    maps = torch.stack([attention[..., list(span)].float().mean(-1) for span in spans])
    return normalise(resize(by_maximum(maps), size))


def reference_map(
    attention: Tensor,
    spans: Sequence[Sequence[int]],
    size: tuple[int, int],
    reference: Reference = "start",
    difference: Tensor | None = None,
) -> Tensor:
    """A first guess [*size] at where the object is, for `classify` (step 2; for T5 and joint attention our own).

    attention: [h, w, tokens]; difference: [h', w'] of the guided and the unguided noise, for the reference of that name
    """
    if reference == "difference":
        if difference is None:
            raise ValueError("the reference “difference” needs guidance: choose a CFG above 1 or another reference")
        return blur(resize(normalise(difference.float())[None], size)[0])
    place = 0 if reference == "start" else sink(attention, spans)
    return normalise(1 - resize(by_maximum(attention[None, ..., place].float()), size)[0])


def sink(attention: Tensor, spans: Sequence[Sequence[int]]) -> int:
    """The token of no word that is attended to most, T5's end token as a rule; among all if every token is a word's."""
    mass = attention.float().mean((0, 1))
    words = [token for span in spans for token in span]
    if len(set(words)) < len(mass):
        mass[words] = -1
    return int(mass.argmax())


def classify(maps: Tensor, reference: Tensor, thresholds: Thresholds = Thresholds()) -> Tensor:  # noqa: B008
    """Roles [words] of words by their maps [words, H, W]: 1 object, −1 background, 0 neither (step 3).

    The word most like the reference [H, W] becomes the one that all are compared to, by cosine similarity. A single
    word is the object.
    """
    flat = F.normalize(maps.flatten(1), dim=1)
    best = (flat @ F.normalize(reference.flatten(), dim=0)).argmax()
    return roles(flat @ flat[best], thresholds).index_fill(0, best, 1)


def classify_by(maps: Tensor, objects: Sequence[int], thresholds: Thresholds = Thresholds()) -> Tensor:  # noqa: B008
    """Roles [words] where a user has pointed at the words that are the object: others are background or nothing."""
    flat, chosen = F.normalize(maps.flatten(1), dim=1), torch.tensor(list(objects), device=maps.device)
    similarity = flat @ F.normalize(maps[chosen].mean(0).flatten(), dim=0)
    return roles(similarity, thresholds).clamp(max=0).index_fill(0, chosen, 1)


def roles(similarity: Tensor, thresholds: Thresholds) -> Tensor:
    return (similarity >= thresholds.object).int() - (similarity <= thresholds.background).int()


def refine(maps: Tensor, roles: Tensor) -> Tensor:
    """Where the object's words are looked for more than the background's, [H, W] (step 4)."""
    if not (roles > 0).any():
        raise ValueError("no word has the role of the object")
    found = normalise(maps[roles > 0].mean(0))
    if (roles < 0).any():
        found = (found - normalise(maps[roles < 0].mean(0))).clamp(min=0)
    return found


@dataclass
class AttentionMaps:
    """The mean of all cross-attention seen so far, and the mask that it gives; one prompt.

    spans: tokens of each word
    size: height and width of heat map and mask, as a rule the latent's
    objects: words that a user points at; without any, they are found by the reference
    frozen: the words' roles are found when the mask is first asked for, after the first step, and stay

    Source: InstDiffEdit (Zou et al. 2024) and its released code.
    Errors: ValueError without words, or for an unknown reference.
    """

    spans: Sequence[Sequence[int]]
    size: tuple[int, int]
    reference: Reference = "start"
    thresholds: Thresholds = Thresholds()
    objects: Sequence[int] = ()
    frozen: bool = True
    roles: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.spans:
            raise ValueError("the prompt is empty: write what the mask should cover")
        if self.reference not in get_args(Reference):
            raise ValueError(f"there is no reference “{self.reference}”: choose {', '.join(get_args(Reference))}")
        self.attention, self.difference = Mean(), Mean()

    def add(self, attention: Tensor) -> None:
        """Attention [..., h, w, tokens] of picture to text after the softmax, of any heads, layers and seeds.

        All of one grid; without padding tokens, or with zeros for them (they would be taken for the sink).
        """
        self.attention.add(attention.float().flatten(0, -4) if attention.ndim > 3 else attention.float()[None])

    def add_difference(self, guided: Tensor, unguided: Tensor) -> None:
        """Noise or clean estimates [B, C, ..., h', w'] with and without the prompt, for the reference “difference”."""
        self.difference.add((guided - unguided).float().abs().flatten(1, -3).sum(1))

    def heat(self) -> Tensor:
        """[H, W] in 0…1, of all that was added so far.

        Errors: ValueError when nothing was: the model has no attention that was seen.
        """
        attention = self.attention.value
        if attention is None:
            raise ValueError("no cross-attention was seen: this model cannot find attention masks")
        maps = words_to_maps(attention, self.spans, self.size)
        if self.roles is None or not self.frozen:
            self.roles = self.find_roles(maps, attention)
        return blur(refine(maps, self.roles))

    def find_roles(self, maps: Tensor, attention: Tensor) -> Tensor:
        if self.objects:
            return classify_by(maps, self.objects, self.thresholds)
        if len(maps) == 1:
            return torch.ones(1, dtype=torch.int32, device=maps.device)
        guess = reference_map(attention, self.spans, self.size, self.reference, self.difference.value)
        return classify(maps, guess, self.thresholds)

    def mask(self) -> Tensor:
        """[H, W] of zeros and ones."""
        return (self.heat() > self.thresholds.mask).float()


# With our own models. What attention shows is weighed by evidence and led to the edges of the picture; without these
# two it is the published method.

FOUND = Thresholds(mask=0.55)  # on scenes that are neither trained nor tested on, with evidence and edges
FINE = 4  # cells of a heat map per token and side, as in InstDiffEdit: attention of 16×16 makes masks of 64×64


class AttentionSettings(NamedTuple):
    """How a mask is looked for.

    seeds, strength, steps: noises, their share (0…1) at the first step, and steps from there to the picture
    evidence: weigh the heat map by `Evidence`; edges: lead it to those of the picture by `guided_filter`
    """

    seeds: Sequence[int] = (0, 1, 2)
    strength: float = 0.5
    steps: int = 1
    reference: Reference = "sink"
    thresholds: Thresholds = FOUND
    evidence: bool = True
    edges: bool = True


@torch.no_grad()
def attention_mask(
    model: LazyDiffusion,
    image: Tensor,
    prompt: str,
    words: str = "",
    settings: AttentionSettings = AttentionSettings(),  # noqa: B008
) -> Found:
    """Where a picture shows what a prompt speaks of.

    image: [1, 3, H, W] in 0…1, of any size
    words: those of the prompt that are the object, separated by commas or spaces; found by the reference if not given
    Each step calls the decoder for the prompt, and once more for evidence or the reference “difference”.
    Errors: ValueError that says what is wrong with the input.
    Source: InstDiffEdit (Zou et al. 2024); `Evidence` and `guided_filter` are not part of it.
    """
    seeds, strength, steps, reference, thresholds, evidence, edges = settings
    spoken = words_of(model.text.split(prompt))
    noisy = NoisyPicture(model, image, seeds, strength)
    grid, size = noisy.grid, (noisy.grid[0] * FINE, noisy.grid[1] * FINE)
    maps = AttentionMaps([word.tokens for word in spoken], size, reference, thresholds, point_at(spoken, words))
    gained = Evidence()
    named, unnamed = noisy.denoiser(prompt), noisy.denoiser("")
    z = noisy.start
    for sigma, lower in pairwise(noise_levels(strength, steps)):
        with watched(model.decoder, lambda attention: maps.add(attention.unflatten(2, grid))):
            clean = named(z, sigma)
        if evidence or reference == "difference":
            other = unnamed(z, sigma)
            maps.add_difference(noisy.cells(clean), noisy.cells(other))
            gained.add(noisy.picture, noisy.cells(clean), noisy.cells(other))
        z = euler_step(z, clean, sigma, lower)
    heat = noisy.finish(maps.heat(), gained if evidence else None, edges)
    return Found((heat > thresholds.mask).float(), heat)


@contextmanager
def watched(decoder: LazyDecoder, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see` with the attention [B, heads, n, L] of tokens to text in every block; what the decoder returns stays
    the same, bit for bit."""

    def hook(module: CrossAttention, args: tuple[Any, ...]) -> None:
        x, (keys, _), mask = args[:3]  # and how x is packed, which a batch of whole canvases is not
        see(attention_maps(module.queries(x), keys, mask))

    handles = [block.cross_attn.register_forward_pre_hook(hook) for block in decoder.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
