"""Lazy Diffusion: local image edits whose cost follows the mask, not the canvas (arXiv 2404.12382)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.poisson import poisson_blend
    from .model.checkpoint import SHIPPED, CheckpointError, load_checkpoint, save_checkpoint
    from .model.config import ModelConfig, Sampling
    from .model.context import LazyContext
    from .model.lazydiffusion import LazyDiffusion
    from .pipeline.decode import composite, decode
    from .pipeline.edit import edit
    from .pipeline.encode import encode
    from .pipeline.sample import SampleSettings, sample

__all__ = [
    "SHIPPED", "CheckpointError", "LazyContext", "LazyDiffusion", "ModelConfig", "SampleSettings", "Sampling",
    "composite", "decode", "edit", "encode", "load_checkpoint", "poisson_blend", "sample", "save_checkpoint",
]  # fmt: skip

# Torch takes seconds to import: what needs it is imported when it is first asked for.
_MODULES = {
    "poisson_blend": "core.poisson", "SHIPPED": "model.checkpoint", "CheckpointError": "model.checkpoint",
    "load_checkpoint": "model.checkpoint", "save_checkpoint": "model.checkpoint", "ModelConfig": "model.config",
    "Sampling": "model.config", "LazyContext": "model.context", "LazyDiffusion": "model.lazydiffusion",
    "composite": "pipeline.decode", "decode": "pipeline.decode", "edit": "pipeline.edit", "encode": "pipeline.encode",
    "SampleSettings": "pipeline.sample", "sample": "pipeline.sample",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
