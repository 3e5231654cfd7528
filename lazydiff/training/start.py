"""What a training begins with: a model with fresh weights for its examples, with PixArt-α's in its decoder, or one that
was trained before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ..data.origins import record_origins
from ..data.shards import ShardHeader
from ..data.stream import Examples, SceneExamples
from ..model.checkpoint import is_checkpoint, load_checkpoint
from ..model.config import ModelConfig
from ..model.latent_space import PreparedLatents
from ..model.layers import AttentionFunction, sdpa
from ..model.lazydiffusion import LazyDiffusion, fingerprint
from ..model.pixart_weights import load_pixart
from ..model.pretrained import pretrained_fingerprint
from ..model.text import PreparedText, train_vocabulary
from ..scenes import CANVAS, vocabulary
from .config import TrainingConfig
from .pictures import Gallery, Paint, paint_lazy
from .state import CONTINUED

SCENE_PIECES, PIECES = 160, 4000  # of a vocabulary of the built-in scenes, and at most of one of other captions
FITTED = 400  # pictures from which the latent space is measured
WORDS = 1000  # of a vocabulary that is few enough to name


@dataclass(frozen=True)
class Material:
    """What a training learns from, and what it shows of itself.

    initialise: what a new training begins with: PixArt-α's weights for its decoder, see `load_pixart`, or a model of
        ours, whole. A training that goes on may not be given others; PixArt-α's it need not be given again.
    gallery: what it paints from time to time; None: nothing
    paint: makes those pictures
    """

    examples: Examples
    initialise: Path | None = None
    gallery: Gallery | None = None
    paint: Paint = paint_lazy

    @classmethod
    def scenes(cls, config: TrainingConfig, initialise: Path | None = None, paint: Paint = paint_lazy) -> Material:
        """The built-in ones, and others to look at.

        Errors: ValueError for a model of another canvas than theirs.
        """
        if config.side != CANVAS and not config.crop:
            raise ValueError(f"the built-in scenes are {CANVAS} px wide, and this trains on {config.side}: give shards")
        return cls(SceneExamples(config.seed), initialise, Gallery.of_scenes(config.seed + 1), paint)


def first_model(
    config: TrainingConfig, material: Material, attention: AttentionFunction = sdpa
) -> tuple[LazyDiffusion, str | None]:
    """The model that a training begins with, and what tells the weights that it was given from others.

    Errors: ValueError for weights that do not fit.
    """
    path = material.initialise
    if path is not None and is_checkpoint(path):
        return continued_model(config, material.examples, path, attention)
    model = new_model(config, material.examples, attention)
    return model, None if path is None else initialise_decoder(model, path)


def continued_model(
    config: TrainingConfig, examples: Examples, path: Path, attention: AttentionFunction
) -> tuple[LazyDiffusion, str]:
    """A model that was trained before, in every part, to be trained on these examples.

    Errors: ValueError for another network than the configuration's, or one without text encoder and latent space.
    """
    header = examples.header
    if header is not None and header.vae is not None:
        raise ValueError(f"{path} has a latent space of its own: prepare the shards without --vae")
    model = load_checkpoint(path, attention=attention)
    if (model.config.network, model.config.prediction) != (config.model.network, config.model.prediction):
        raise ValueError(f"{path}: its network is not that of the configuration, {config.model.name}")
    model.config = replace(model.config, name=config.model.name, sampling=config.model.sampling)
    if header is not None:
        fitting(config, header)
    model.train().requires_grad_(True)
    model.latent.requires_grad_(False)  # its clean-up is trained by a command of its own
    return model, CONTINUED + fingerprint(model.config, model.state_dict())


def new_model(config: TrainingConfig, examples: Examples, attention: AttentionFunction = sdpa) -> LazyDiffusion:
    """A model with fresh weights.

    For prepared latents and text features it is the networks alone. Else it has a text encoder and a latent space of
    its own, whose vocabulary and components are measured on the examples.
    Errors: ValueError for shards that such a model cannot be trained on.
    """
    set_seed(config.seed)
    header, network = examples.header, config.model.network
    model = config.model if header is None else fitting(config, header)
    if header is not None and header.vae is not None:
        prepared = LazyDiffusion(model, PreparedText(), PreparedLatents(network.channels), attention=attention)
        prepared.initialise(config.seed)
        return prepared
    captions, pieces = examples.captions(), SCENE_PIECES if header is None else PIECES
    words = vocabulary() if header is None else few_words(captions)
    model = replace(model, words=tuple(sorted(words)))
    contained = LazyDiffusion.self_contained(model, train_vocabulary(captions, pieces), attention=attention)
    contained.initialise(config.seed)
    pictures = torch.from_numpy(examples.pictures(FITTED, config.seed))
    contained.latent.fit(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)
    return contained


def few_words(captions: list[str]) -> set[str]:
    """All words of captions, none if they are too many to name."""
    words = {word for caption in captions for word in caption.casefold().split()}
    return words if len(words) <= WORDS else set()


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
    return record_origins(config.model, replace(header, size=config.side) if cropped_later else header, config.side)


def initialise_decoder(model: LazyDiffusion, path: Path) -> str:
    """Give a model's decoder PixArt-α's weights; returns a fingerprint of them.

    The encoder stays as it is and is not heard yet: the decoder begins as stock PixArt, but for one added layer.
    Errors: ValueError for weights that do not fit, see `load_pixart`.
    """
    load_pixart(model.decoder, path)
    return pretrained_fingerprint(model.decoder)
