"""Decoding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..lazydiff.cache.kv_context import KVContext
from ..lazydiff.core.masks import to_grid
from ..lazydiff.model.context import LazyContext
from ..lazydiff.pipeline.edit import size_text
from .canvas import hole_of
from .host.lazy_vae import canvas_vae, work
from .host.progress import show
from .types import CATEGORY, LazyContextIO

MODES = ["lazy", "exact (full)"]


class LazyVAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LazyVAEDecode",
            display_name="Lazy VAE Decode",
            category=CATEGORY,
            description="VAE Decode whose work follows the hole. The first decode of a canvas computes everything and "
            "is remembered; later ones compute what has changed since then, and what lies around it. For the VAEs of "
            "Stable Diffusion, SDXL, SD3 and Flux; others decode everything. The node says what it did.",
            inputs=[
                io.Latent.Input("samples", tooltip="From a sampler."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.MultiType.Input(
                    "hole", types=[LazyContextIO, io.Mask], tooltip="Where it was sampled: the context, or its mask."
                ),
                io.Image.Input("canvas", tooltip="The picture that was edited; it stays outside the hole."),
                io.Combo.Input(
                    "mode",
                    options=MODES,
                    default=MODES[0],
                    tooltip="lazy: what has changed, from what is remembered. exact: always everything, as VAE Decode.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "IMAGE",
                    tooltip="The canvas with the decode in all squares of 8 px that the hole touches or is next to: "
                    "what Poisson Blend needs as source, with the same mask.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, samples: dict[str, Tensor], vae: Any, hole: Tensor | LazyContext | KVContext, canvas: Tensor, mode: str
    ) -> io.NodeOutput:
        mask = hole if isinstance(hole, Tensor) else hole_of(hole)
        mask = mask.reshape(-1, 1, *mask.shape[-2:]) > 0.5
        picture = canvas[..., :3].movedim(-1, 1)
        space = canvas_vae(vae)
        decoded = space.decode(samples["samples"], whole=mode != MODES[0])
        show(work(space, decoded.planned) if mode == MODES[0] else "full decode, as chosen")
        return io.NodeOutput(pasted(decoded.output, picture, mask, samples["samples"].shape[-1]).movedim(1, -1))


def pasted(decoded: Tensor, picture: Tensor, mask: Tensor, cells: int) -> Tensor:
    """Pictures with decodes in the latent cells, so many of them side by side, that masks touch or are next to."""
    sizes = {"latents": size_text(decoded), "canvas": size_text(picture), "mask": size_text(mask)}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"the {name} {size}" for name, size in sizes.items())
        raise ValueError(f"these are of different size: {told}. Give the canvas and the mask that were sampled on")
    rows = len(decoded)
    if rows % len(picture) or rows % len(mask):
        raise ValueError(f"there are {rows} latents, {len(picture)} pictures and {len(mask)} masks: give one picture "
                         "and one mask, or as many as there are latents")  # fmt: skip
    cell = decoded.shape[-1] // cells
    near = F.interpolate(to_grid(F.max_pool2d(mask.to(decoded), 3, 1, 1), cell), scale_factor=cell)
    picture, near = (each.repeat(rows // len(each), 1, 1, 1) for each in (picture, near))
    return torch.where(near > 0, decoded.to(picture), picture)
