"""The measured quality of a model."""

from .baselines import evaluate_baselines
from .evaluate import evaluate

__all__ = ["evaluate", "evaluate_baselines"]
