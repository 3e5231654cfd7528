"""What a training begins with: a model with fresh weights for its examples, and perhaps PixArt-α's in its decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ..data.origins import record_origins
from ..data.shards import ShardHeader
from ..data.stream import Examples, SceneExamples
from ..model.config import ModelConfig
from ..model.latent_space import PreparedLatents
from ..model.layers import AttentionFunction, sdpa
from ..model.lazydiffusion import LazyDiffusion
from ..model.pixart_weights import load_pixart
from ..model.pretrained import pretrained_fingerprint
from ..model.text import PreparedText, train_vocabulary
from ..scenes import vocabulary
from .config import TrainingConfig
from .pictures import Gallery, Paint, paint_lazy

SCENE_PIECES, PIECES = 160, 4000  # of a vocabulary of the built-in scenes, and at most of one of other captions
FITTED = 400  # pictures from which the latent space is measured


@dataclass(frozen=True)
class Material:
    """What a training learns from, and what it shows of itself.

    initialise: PixArt-α weights that a new training's decoder begins with, see `load_pixart`. One that goes on has its
        own and need not be given them, but may not be given others.
    gallery: what it paints from time to time; None: nothing
    paint: makes those pictures
    """

    examples: Examples
    initialise: Path | None = None
    gallery: Gallery | None = None
    paint: Paint = paint_lazy

    @classmethod
    def scenes(cls, config: TrainingConfig, initialise: Path | None = None, paint: Paint = paint_lazy) -> Material:
        """The built-in ones, and others to look at."""
        return cls(SceneExamples(config.seed), initialise, Gallery.of_scenes(config.seed + 1), paint)


def new_model(config: TrainingConfig, examples: Examples, attention: AttentionFunction = sdpa) -> LazyDiffusion:
    """A model with fresh weights.

    For prepared latents and text features it is the networks alone. Else it has a text encoder and a latent space of
    its own, whose vocabulary and components are measured on the examples.
    Errors: ValueError for shards that such a model cannot be trained on.
    """
    set_seed(config.seed)
    header, network = examples.header, config.model.network
    if header is None:
        model, pieces = replace(config.model, words=tuple(sorted(vocabulary()))), SCENE_PIECES
    else:
        model, pieces = fitting(config, header), PIECES
    if header is not None and header.vae is not None:
        prepared = LazyDiffusion(model, PreparedText(), PreparedLatents(network.channels), attention=attention)
        prepared.initialise(config.seed)
        return prepared
    contained = LazyDiffusion.self_contained(model, train_vocabulary(examples.captions(), pieces), attention=attention)
    contained.initialise(config.seed)
    pictures = torch.from_numpy(examples.pictures(FITTED, config.seed))
    contained.latent.fit(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)
    return contained


def fitting(config: TrainingConfig, header: ShardHeader) -> ModelConfig:
    """The model's configuration with the VAE and text encoder of the shards.

    Errors: ValueError for shards that it cannot be trained on.
    """
    if (header.vae is None) != (header.text is None):
        there, missing = ("latents", "text features") if header.text is None else ("text features", "latents")
        raise ValueError(f"the shards have {there} and no {missing}: prepare them with both, or with neither")
    if header.crop and not config.crop:
        raise ValueError("the shards show the squares around holes: train a configuration with crop = true on them")
    cropped_later = config.crop and not header.crop  # from pictures of any size
    if cropped_later and header.vae is not None:
        raise ValueError("crop is true, and the shards have latents of whole pictures: prepare squares instead")
    return record_origins(config.model, replace(header, size=config.model.network.canvas) if cropped_later else header)


def initialise_decoder(model: LazyDiffusion, path: Path) -> str:
    """Give a model's decoder PixArt-α's weights; returns a fingerprint of them.

    The encoder stays as it is and is not heard yet: the decoder begins as stock PixArt, but for one added layer.
    Errors: ValueError for weights that do not fit, see `load_pixart`.
    """
    load_pixart(model.decoder, path)
    return pretrained_fingerprint(model.decoder)
