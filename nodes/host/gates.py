"""Gates attached to a MODEL: a run for every sampling, a question in every call of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.model_sampling
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...lazydiff.cache.module_skip import MODULES, Gates, SkipCalibrator, SkipPolicy, SkipSession
from ...lazydiff.core.tokens import HoleTokens
from ...lazydiff.model.layers import Gate, always
from .steps import Steps, count_evaluations

KEY = "lazydiffusion_gates"


class GatedSampling:
    """What decides in the samplings of a MODEL.

    gates: trained ones; None: the first sampling of a schedule computes everything, and decides for those after it
    ratio: share of the modules to skip, decided beforehand; 0: trained gates decide step by step, row by row
    tell: shows the user a line
    """

    modules = "attentions and MLPs"

    def __init__(self, gates: Gates | None, ratio: float, tell: Callable[[str], None]):
        self.gates: SkipPolicy | None = gates.fixed(ratio) if gates is not None and ratio else gates
        self.ratio, self.tell = ratio, tell
        self.calibrated: dict[tuple[float, ...], SkipPolicy] = {}
        self.run: SkipSession | None = None
        self.steps: Steps | None = None  # of the sampling in progress
        self.flow = True  # whether its noise levels are shares already

    def __deepcopy__(self, memo: dict[int, Any]) -> GatedSampling:
        return self  # the host copies a MODEL's options; what was calibrated serves all copies

    def attach(self, model: Any) -> Any:
        """A clone of the MODEL whose samplings are gated."""
        model = model.clone()
        model.model_options["transformer_options"][KEY] = self
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.sampling)
        count_evaluations(model, KEY, lambda: self.steps)
        return model

    def sampling(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Around a sampling; nothing that was kept in it outlives it, however it ends."""
        model = executor.class_obj.model_patcher.model
        steps, self.flow = Steps(sampler, sigmas), isinstance(model.model_sampling, comfy.model_sampling.CONST)
        levels = tuple(map(self.share, steps.levels))
        if len(levels) < 2:
            return executor(noise, latent, sampler, sigmas, *args, **kwargs)
        decisions = self.gates or self.calibrated.get(levels) or self.watch(model, levels)
        decisions.reset()
        self.run = decisions.session(getattr(model, "fingerprint", ""), levels)
        self.steps = steps
        try:
            out = executor(noise, latent, sampler, sigmas, *args, **kwargs)
        finally:
            self.run = self.steps = None
        if isinstance(decisions, SkipCalibrator):
            self.calibrate(decisions, levels)
        else:
            self.tell(f"Lazy Gates: {decisions.ratio:.0%} of the {self.modules} were not computed.")
        return out

    def level(self, t: Tensor) -> float:
        """The noise level of a call of the model in the sampling in progress; t: [B], as the sampler counts."""
        assert self.steps is not None
        return self.share(self.steps.sigma(t))

    def share(self, sigma: float) -> float:
        """The share of the noise, 1…0, at a noise level as samplers count: of a flow it is the same."""
        return sigma if self.flow else 1.0 if math.isinf(sigma) else sigma / (1 + sigma)

    def watch(self, model: Any, levels: tuple[float, ...]) -> SkipCalibrator:
        """What measures in a sampling that computes everything."""
        return SkipCalibrator(levels, MODULES * model.network.decoder_depth)

    def calibrate(self, watch: SkipCalibrator, levels: tuple[float, ...]) -> None:
        if not watch.asked:  # nothing was to be generated
            return
        ratio = min(self.ratio, watch.most)  # of an odd number of steps, half of the modules are too many
        self.calibrated[levels] = watch.table_of(ratio)
        self.tell(
            f"Lazy Gates: calibrated. This sampling computed everything; the next ones of its {len(levels) - 1} steps "
            f"skip {ratio:.0%}."
        )


def gate_of(options: dict[str, Any], t: Tensor, hole: HoleTokens) -> Gate:
    """What stands around the modules in a call of the model; t: [B] noise levels as samplers count."""
    gated: GatedSampling | None = options.get(KEY)
    if gated is None or gated.run is None:
        return always
    prompts = len(t), *zip(options["cond_or_uncond"], options["uuids"], strict=True)
    return gated.run.call(gated.level(t), prompts, hole.key_mask)
