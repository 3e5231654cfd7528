"""What a training begins with: a model with fresh weights for its examples, and perhaps PixArt-α's in its decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ..data.shards import ShardHeader
from ..data.stream import Examples, SceneExamples
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
    def scenes(cls, config: TrainingConfig, paint: Paint = paint_lazy) -> Material:
        """The built-in ones, and others to look at."""
        return cls(SceneExamples(config.seed), gallery=Gallery.of_scenes(config.seed + 1), paint=paint)


def new_model(config: TrainingConfig, examples: Examples, attention: AttentionFunction = sdpa) -> LazyDiffusion:
    """A model with fresh weights.

    For prepared latents and text features it is the networks alone. Else it has a text encoder and a latent space of
    its own, whose vocabulary and components are measured on the examples.
    Errors: ValueError for examples that such a model cannot be trained on.
    """
    set_seed(config.seed)
    header, model = examples.header, config.model
    if header is not None:
        check_header(header, config)
    if header is not None and header.vae is not None:
        network = LazyDiffusion(model, PreparedText(), PreparedLatents(model.network.channels), attention=attention)
        network.initialise(config.seed)
        return network
    model = replace(model, words=tuple(sorted(vocabulary())) if header is None else ())
    pieces = train_vocabulary(examples.captions(), SCENE_PIECES if header is None else PIECES)
    contained = LazyDiffusion.self_contained(model, pieces, attention=attention)
    contained.initialise(config.seed)
    pictures = torch.from_numpy(examples.pictures(FITTED, config.seed))
    contained.latent.fit(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)
    return contained


def check_header(header: ShardHeader, config: TrainingConfig) -> None:
    """Errors: ValueError for shards whose pictures, latents or features are of other sizes than the network's."""
    network, crop = config.model.network, config.crop
    if header.crop and not crop:
        raise ValueError("the shards show crops around their holes: train a model with crop = true on them")
    cut_here = crop and not header.crop  # which takes pictures of any size
    if cut_here and header.vae is not None:
        raise ValueError("crop is true, and the shards have latents of whole pictures: prepare them as crops")
    if not cut_here and header.size != network.canvas:
        raise ValueError(f"the shards are of {header.size} px, and the model of {network.canvas} px")
    if (header.vae is None) != (header.text is None):
        there, missing = ("latents", "text features") if header.text is None else ("text features", "latents")
        raise ValueError(f"the shards have {there} and no {missing}: prepare them with VAE and text encoder, or neither")
    if header.vae is None or header.text is None:
        return
    for what, found, needed in (
        ("pixels per latent cell", header.vae.cell, network.cell),
        ("latent channels", header.vae.channels, network.channels),
        ("values per text feature", header.text.width, network.text_width),
    ):
        if found != needed:
            raise ValueError(f"the shards have {found} {what}, and the model {needed}")


def initialise_decoder(model: LazyDiffusion, path: Path) -> str:
    """Give a model's decoder PixArt-α's weights; returns a fingerprint of them.

    The encoder stays as it is and is not heard yet: the decoder begins as stock PixArt, but for one added layer.
    Errors: ValueError for weights that do not fit, see `load_pixart`.
    """
    load_pixart(model.decoder, path)
    return pretrained_fingerprint(model.decoder)
