"""A grid of samples, to look at while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.pictures import from_array, grid
from ..data.shards import expand_shards, read_shard
from ..model.lazydiffusion import LazyDiffusion
from ..model.text import PreparedText
from ..pipeline.decode import composite, decode
from ..pipeline.encode import encode
from ..pipeline.sample import sample
from ..scenes import random_sample

# Called as paint(model, image, mask, prompt, seed) -> [1, 3, H, W]
Paint = Callable[[LazyDiffusion, Tensor, Tensor, str, int], Tensor]
NUMBER = 16  # of examples
COLUMNS = 8


def paint_lazy(model: LazyDiffusion, image: Tensor, mask: Tensor, prompt: str, seed: int) -> Tensor:
    """As `edit`, at the size that the model is trained on, which may be less than its canvas."""
    context = encode(model, image, mask)
    return composite(image, decode(model, context, sample(model, context, [prompt], [seed])), mask)


class Shown(NamedTuple):
    """Canvas [1, 3, H, W] in 0…1, mask [1, 1, H, W] and prompt of a sample that is looked at."""

    image: Tensor
    mask: Tensor
    prompt: str


@dataclass(frozen=True)
class Gallery:
    """What a training paints from time to time, always the same.

    vae, features: of a training on latents and text features, the VAE to decode with and the prompts' features
    """

    samples: list[Shown]
    vae: Any = None
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_scenes(cls, seed: int, number: int = NUMBER) -> Gallery:
        """Scenes of another seed than the training's are held out of it."""
        rng = np.random.default_rng(seed)
        return cls([shown(s.image, s.mask, s.caption) for s in (random_sample(rng) for _ in range(number))])

    @classmethod
    def of_shards(cls, pattern: str, vae: Any = None, number: int = NUMBER) -> Gallery:
        """The first hole of each of the first pictures."""
        samples = list(islice(chain.from_iterable(map(read_shard, expand_shards(pattern))), number))
        features = {}
        for one in samples:
            if one.header.text is not None:
                features[one.captions[0]] = torch.from_numpy(one.features(0))
                features[""] = torch.from_numpy(one.features("empty"))
        return cls([shown(s.picture(), s.mask(0), s.captions[0]) for s in samples], vae, features)


def shown(image: np.ndarray, mask: np.ndarray, prompt: str) -> Shown:
    return Shown(from_array(image), torch.from_numpy(mask)[None, None].float(), prompt)


def sample_grid(model: LazyDiffusion, gallery: Gallery, paint: Paint = paint_lazy) -> Image.Image:
    """Pairs of a canvas with its hole and the model's answer, each with its prompt."""
    if gallery.vae is not None:
        model = model.beside(PreparedText(gallery.features), gallery.vae.to(model.device))
    cells = []
    for seed, (image, mask, prompt) in enumerate(gallery.samples):
        masked = torch.where(mask > 0, torch.full_like(image, 0.5), image)
        cells += [(masked[0], ""), (paint(model, image, mask, prompt, seed)[0], prompt)]
    return grid(cells, min(COLUMNS, len(cells)))
