"""Lazy Diffusion: local image edits whose cost follows the mask, not the canvas (arXiv 2404.12382)."""

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
