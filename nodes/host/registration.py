"""How the host's loaders come to know our checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import comfy.supported_models
import comfy.supported_models_base
import torch
from torch import Tensor

from .model import LazyModel
from .settings import SIGNATURE, Settings


class LazyConfig(comfy.supported_models_base.BASE):
    """What the host's loaders find when they ask which model a state dict is."""

    memory_usage_factor = 0.5
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    @classmethod
    def matches(cls, unet_config: Any, state_dict: Any = None, *args: Any, **kwargs: Any) -> bool:
        return state_dict is not None and SIGNATURE in state_dict

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> LazyModel:
        settings = Settings.of(state_dict)
        self.latent_format = settings.latent_format
        self.sampling_settings = {
            "beta_schedule": "sqrt_linear", "linear_start": 1e-4, "linear_end": 2e-2, "timesteps": 1000,
            "shift": settings.config.sampling.shift,
        }  # fmt: skip
        names = [name for name in state_dict if name.startswith("encoder.")]
        encoder = {name.removeprefix("encoder."): state_dict.pop(name) for name in names}
        return LazyModel(self, settings, encoder, device)


def registered_elsewhere() -> Path | None:
    """The folder of another copy of this pack that the host has loaded already."""
    for model in comfy.supported_models.models:
        file = getattr(sys.modules.get(model.__module__), "__file__", None)
        if model.__name__ == LazyConfig.__name__ and model is not LazyConfig and file:
            return Path(file).parents[2]
    return None


def register() -> None:
    """Let the host's loaders know our checkpoints. It has a list and no function for that."""
    models = comfy.supported_models.models
    if LazyConfig not in models:
        models.insert(0, LazyConfig)
