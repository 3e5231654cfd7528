"""Gates."""

from __future__ import annotations

from typing import Any

import folder_paths
from comfy_api.latest import io

from ..lazydiff.cache.module_skip import SUFFIX
from .host.settings import GATES_FOLDER
from .host.stock_gates import CALIBRATE, attach_gates
from .inputs import node_schema


class LazyGates(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [name for name in folder_paths.get_filename_list(GATES_FOLDER) if name.endswith(SUFFIX)]
        return node_schema(
            "LazyGates",
            "Lazy Gates",
            description="Skips attentions and MLPs, of stock transformers whole blocks, that would answer nearly as at "
            "the step before. Trained gates are for one model and one list of steps; “calibrate” serves any steps of a "
            "LazyDiffusion model or a stock transformer.",
            aliases=["skip", "faster", "lazydit", "step cache", "module skip"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A LazyDiffusion model or a stock transformer, with or without a context."
                ),
                io.Combo.Input(
                    "gates",
                    options=[CALIBRATE, *names],
                    default=CALIBRATE,
                    tooltip="calibrate: the first sampling computes everything, and decides what the next ones with "
                    "its steps skip, so that a picture depends on what ran before it. Or trained gates "
                    "(NAME.gates.safetensors in models/lazydiffusion_gates).",
                ),
                io.Float.Input(
                    "ratio",
                    default=0.4,
                    min=0.0,
                    max=0.5,
                    step=0.05,
                    tooltip="Share of the attentions and MLPs (or blocks) to skip, the same for every picture. 0: what "
                    "trained gates decide by their threshold, picture by picture.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="With a ratio of 0: a trained gate whose score is lower skips. Higher skips more.",
                ),
            ],
            outputs=[io.Model.Output("MODEL", tooltip="For Lazy Sample and any sampler.")],
        )

    @classmethod
    def execute(cls, model: Any, gates: str, ratio: float, threshold: float) -> io.NodeOutput:
        return io.NodeOutput(attach_gates(model, gates, ratio, threshold))
