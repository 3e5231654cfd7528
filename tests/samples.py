"""Samples of the world and models as tests take them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lazydiff.core.pictures import from_array
from lazydiff.model.config import PRESETS, ModelConfig, NetworkConfig, Prediction, Sampling
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.scenes import random_sample


def scene(number: int) -> tuple[Tensor, Tensor, str]:
    """Image [1, 3, 96, 96] in 0…1, mask [1, 1, 96, 96] and caption of a sample of the world."""
    sample = random_sample(np.random.default_rng([7, number]), "object")
    return from_array(sample.image), torch.from_numpy(sample.mask)[None, None].float(), sample.caption


def tiny_model(
    prediction: Prediction, vocabulary: bytes, shape: str | NetworkConfig = "small"
) -> LazyDiffusion:
    """A model of that shape, or that preset's, with next to no width and random weights."""
    shape = PRESETS[shape] if isinstance(shape, str) else shape
    network = replace(
        shape, width=24, heads=2, decoder_depth=2, encoder_depth=min(shape.encoder_depth, 2),
        text_width=16, channels=12, learned_variance=prediction != "flow",
    )  # fmt: skip
    sampler = "iddpm" if prediction == "iddpm" else "ancestral"
    config = ModelConfig(network, prediction, "tiny", 1, Sampling(sampler, steps=3, guidance=2.0))
    model = LazyDiffusion.self_contained(config, vocabulary)
    model.initialise(0)
    torch.nn.init.normal_(model.decoder.final_layer.linear.weight, std=0.02)  # it starts at zero: nothing would show
    model.latent.fit(torch.cat([scene(i)[0] for i in range(30)]) * 2 - 1)
    return model.eval().requires_grad_(False)
