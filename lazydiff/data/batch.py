"""Examples of a training, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .shards import ShardSample


class Example(NamedTuple):
    """A picture, a hole in it and what to put there.

    seed: of all randomness of a training step on this example
    mask: bool [H, W], True = hole; image: uint8 [H, W, 3], None where there are latents
    latents: float16 [3, C, h, w], as `ShardSample.latents` gives them
    text, empty: float16 [L, width], features of the caption and of no text, where they were prepared
    """

    seed: int
    mask: np.ndarray
    caption: str
    image: np.ndarray | None = None
    latents: np.ndarray | None = None
    text: np.ndarray | None = None
    empty: np.ndarray | None = None


class Batch(NamedTuple):
    """Examples put together; None stands for what none of them has.

    mask: [B, 1, H, W] uint8; image: [B, 3, H, W] uint8; latents: [B, 3, C, h, w] float16
    text, empty: [L, width] float16 of each example
    """

    seeds: list[int]
    mask: Tensor
    captions: list[str]
    image: Tensor | None
    latents: Tensor | None
    text: list[Tensor] | None
    empty: list[Tensor] | None


def collate(examples: Sequence[Example]) -> Batch:
    """All of them have the same parts, and pictures of one size."""
    image, latents, text, empty = (
        tensors([getattr(example, name) for example in examples]) for name in ("image", "latents", "text", "empty")
    )
    return Batch(
        [example.seed for example in examples],
        torch.from_numpy(np.stack([example.mask for example in examples]))[:, None].to(torch.uint8),
        [example.caption for example in examples],
        None if image is None else torch.stack(image).permute(0, 3, 1, 2).contiguous(),
        None if latents is None else torch.stack(latents),
        text,
        empty,
    )


def tensors(arrays: Sequence[np.ndarray | None]) -> list[Tensor] | None:
    found = [torch.from_numpy(array) for array in arrays if array is not None]
    return found or None


def prepared_example(sample: ShardSample, hole: int, seed: int) -> Example:
    """One hole of a shard's picture: with latents and text features if they are there, else with the picture."""
    header, mask, caption = sample.header, sample.mask(hole), sample.captions[hole]
    if header.vae is None:
        return Example(seed, mask, caption, image=sample.picture())
    latents, text, empty = sample.latents(hole), None, None
    if header.text is not None:
        text, empty = sample.features(hole), sample.features("empty")
    return Example(seed, mask, caption, None, latents, text, empty)
