"""Contexts of both kinds, attached to the MODEL that they are for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...lazydiff.cache.kv_context import KVContext
from ...lazydiff.model.context import LazyContext
from . import model as learned
from .kv import LazySampling


def attach(model: Any, context: LazyContext | KVContext) -> Any:
    """A clone of the MODEL whose samplings are of this context. Errors: ValueError for a context of another model."""
    if isinstance(context, KVContext):
        if context.model() is not model.model:
            raise ValueError("this context was made for another model: encode the canvas again with this one")
        return LazySampling(model, context).attach(model)
    return learned.attach(model, context)


def encode_each(vae: Any, images: Tensor) -> Tensor:
    """Latents of images [B, H, W, 3], one by one: a VAE of videos takes a batch for the frames of one."""
    return torch.cat([vae.encode(image) for image in images.split(1)])
