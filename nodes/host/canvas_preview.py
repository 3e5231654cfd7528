"""What the canvas editor shows of a sampling while it runs: every variation, where it lies on the canvas.

The host's own previews show the first of a batch alone, do not know how a canvas was fitted, and are off by default.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from typing import Any

import comfy.utils
import latent_preview
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from ...lazydiff.cache.kv_context import KVContext
from ...lazydiff.model.context import LazyContext
from ...lazydiff.pipeline.fit import Fit

EVENT = "lazydiffusion.preview"
PAUSE = 0.1  # seconds between two previews: what a page can show, and a fast sampler is not held up by


class CanvasPreview:
    """A sampler's callback."""

    def __init__(self, model: Any, context: LazyContext | KVContext, name: str, steps: int):
        self.form, self.name, self.bar = model.model.latent_format, name, comfy.utils.ProgressBar(steps)
        self.fit = context.fitted.fit if context.fitted else Fit.padded(torch.empty(context.size), 1)
        self.previewer = latent_preview.get_previewer(model.load_device, self.form)
        if self.previewer is None and self.form.latent_rgb_factors is not None:
            self.previewer = latent_preview.Latent2RGBPreviewer(
                self.form.latent_rgb_factors, self.form.latent_rgb_factors_bias
            )
        self.shown = 0.0

    def __call__(self, step: int, denoised: Tensor, noisy: Tensor, steps: int) -> None:
        self.bar.update_absolute(step + 1, steps)
        now, running = time.monotonic(), get_executing_context()
        if "server" not in sys.modules or running is None or now - self.shown < PAUSE and step + 1 < steps:
            return
        self.shown = now
        server, region = sys.modules["server"].PromptServer.instance, self.fit.region
        pictures = [self.picture(row) for row in denoised.split(1)] if self.previewer else []
        told = {
            "prompt_id": running.prompt_id, "name": self.name, "step": step + 1, "steps": steps, "pictures": pictures,
            "box": [region.left, region.top, region.width, region.height],
        }  # fmt: skip
        server.send_sync(EVENT, told, server.client_id)

    def picture(self, latent: Tensor) -> str:
        """A JPEG as a data URL, of the region of the canvas that the model looks at."""
        whole: Image.Image = self.previewer.decode_latent_to_preview(latent)
        shares = [inner / outer for inner, outer in zip(self.fit.inner, self.fit.outer, strict=True)]
        size = max(round(whole.width * shares[1]), 1), max(round(whole.height * shares[0]), 1)
        file = io.BytesIO()
        whole.crop((0, 0, *size)).save(file, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
