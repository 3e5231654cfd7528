"""The measured quality of a model."""

from .evaluate import evaluate

__all__ = ["evaluate"]
