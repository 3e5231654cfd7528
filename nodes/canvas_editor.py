"""The canvas that a person paints on."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..lazydiff.pipeline.decode import Blend
from .host.canvas_editing import EditSettings, generate, picture_and_mask
from .host.canvas_request import CanvasRequest
from .host.progress import untold
from .host.sampling import SamplerSettings
from .inputs import advanced, blend_input, denoise_input, edge_inputs, node_schema, own_sampler_inputs
from .types import CanvasEditorIO

SOCKETS = ("model", "clip", "vae")


class LazyCanvasEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyCanvasEditor",
            "Lazy Canvas Editor",
            description="Paint over what is to change, say what should be there, press Enter, keep one of the "
            "variations, and go on. Outside of what is painted every pixel stays exactly as it was.",
            aliases=["inpaint", "paint", "mask editor", "generative fill", "canvas", "live painting", "outpaint"],
            inputs=[
                io.Model.Input("model", lazy=True, tooltip="A LazyDiffusion model, or a stock one."),
                io.Clip.Input("clip", lazy=True, tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", lazy=True, tooltip="The VAE that belongs to the model."),
                CanvasEditorIO.Input(
                    "canvas", tooltip="The canvas: picture, strokes and prompt.", extra_dict={"socketless": True}
                ),
                *own_sampler_inputs(),
                denoise_input("1 = from noise alone; less keeps more of what lies under the mask."),
                io.Float.Input(
                    "sketch_denoise", default=0.7, min=0.0, max=1.0, step=0.01,
                    tooltip="The same where colours were painted: less keeps more of them.",
                ),
                *advanced([
                    io.String.Input("negative", default="", tooltip="What to stay away from; not used at cfg 1."),
                    *edge_inputs(),
                    blend_input(),
                ]),
                io.Image.Input("image", optional=True, tooltip="A picture to begin with, when the canvas is empty."),
            ],
            outputs=[
                io.Image.Output("IMAGE", tooltip="The canvas as it was kept last."),
                io.Mask.Output("MASK", tooltip="What is painted on it."),
                io.String.Output("PROMPT", display_name="prompt", tooltip="What was asked for last."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, canvas: str, **given: Any) -> list[str]:
        """Models are loaded for what is to be generated alone. The host asks this before it runs the node."""
        generates = CanvasRequest.read(canvas).name
        return [name for name in SOCKETS if generates and given.get(name) is None]

    @classmethod
    def execute(
        cls, canvas: str, steps: int, cfg: float, sampler: str, scheduler: str, denoise: float, sketch_denoise: float,
        negative: str, grow: int, feather: int, blend: Blend, model: Any = None, clip: Any = None, vae: Any = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        request = CanvasRequest.read(canvas)
        opened, picture, mask = picture_and_mask(request, image)
        told: dict[str, list[Any]] = {"opened": [opened._asdict()] if opened else []}
        if request.name:
            settings = EditSettings(negative, grow, feather, blend, sketch_denoise)
            sampling = SamplerSettings(request.seed, steps, cfg, sampler, scheduler, denoise)
            with untold():
                made = generate((model, clip, vae), request, (picture, mask), settings, sampling)
            told |= {"name": [request.name], "variations": [each._asdict() for each in made]}
        return io.NodeOutput(picture, mask, request.prompt, ui=told)
