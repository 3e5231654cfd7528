"""The measured quality of a model."""

from .baselines import evaluate_baselines
from .evaluate import evaluate
from .evidence import evaluate_evidence
from .world_evaluation import evaluate_world

__all__ = ["evaluate", "evaluate_baselines", "evaluate_evidence", "evaluate_world"]
