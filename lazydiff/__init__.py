"""Lazy Diffusion: local image edits whose cost follows the mask, not the canvas (arXiv 2404.12382)."""

from .checkpoint import SHIPPED, CheckpointError, load_checkpoint, save_checkpoint
from .context import LazyContext
from .model import LazyDiffusion, ModelConfig, Sampling
from .pipeline import composite, decode, edit, encode, sample
from .poisson import poisson_blend

__all__ = [
    "SHIPPED", "CheckpointError", "LazyContext", "LazyDiffusion", "ModelConfig", "Sampling", "composite", "decode",
    "edit", "encode", "load_checkpoint", "poisson_blend", "sample", "save_checkpoint",
]  # fmt: skip
