"""At which of its noise levels a sampling is, known without asking the device."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

# Samplers of the host's that ask the model once for each noise level, in their order. The others are asked for theirs.
ONCE_A_STEP = {
    f"sample_{name}"
    for name in (
        "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "lms", "dpmpp_2m", "dpmpp_2m_cfg_pp",
        "dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm", "ipndm", "ipndm_v", "deis", "gradient_estimation", "er_sde",
    )
}  # fmt: skip


class Steps:
    """One sampling's noise levels, as the sampler counts them."""

    def __init__(self, sampler: Any, sigmas: Tensor):
        self.levels: list[float] = sigmas.tolist()
        function = getattr(sampler, "sampler_function", None)
        churned = bool(getattr(sampler, "extra_options", {}).get("s_churn"))
        name = getattr(function, "__name__", "")
        self.counted = not churned and (name in ONCE_A_STEP or getattr(function, "once_a_step", False))
        self.evaluations = 0

    def begin_evaluation(self) -> None:
        """The sampler asks the model, which may be called several times for it."""
        self.evaluations += 1

    def sigma(self, t: Tensor) -> float:
        """The noise level of a call of the model in this evaluation; t: [B], the same on the device."""
        if self.counted and 0 < self.evaluations < len(self.levels):
            return self.levels[self.evaluations - 1]
        return float(t.flatten()[0])


def count_evaluations(model: Any, key: str, steps_of: Any) -> None:
    """Let the `Steps` that `steps_of()` gives, if any, know of every evaluation of a MODEL's samplings."""

    def predict_noise(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        steps: Steps | None = steps_of()
        if steps is not None:
            steps.begin_evaluation()
        return executor(*args, **kwargs)

    model.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, key)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, predict_noise)
