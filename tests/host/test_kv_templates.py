"""The templates for stock models, run with tiny stand-ins for what they load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from .in_process import Pack
from .running_server import PACK
from .tiny_models import TinyVAE, prompt, tiny

pytestmark = pytest.mark.host

SMALL = {"width": 256, "height": 256, "steps": 4}  # instead of what the templates say


def edit_prompt(latent: Tensor, seed: int) -> list[list[Any]]:
    return prompt("qwen-image", 7, seed, reference_latents=[latent])


@pytest.mark.parametrize(("template", "model"), [("10-flux-fill", "flux-fill"), ("11-qwen-image-edit", "qwen-image")])
def test_template_edits_the_hole_alone(pack: Pack, tmp_path: Path, template: str, model: str) -> None:
    """Every node of the template but its loaders and text encoders is executed as it stands."""
    graph = json.loads((PACK / "workflows" / "api" / f"{template}.json").read_text("utf-8"))
    picture = Image.open(PACK / "workflows" / "pictures" / graph["4"]["inputs"]["image"]).convert("RGBA")
    pixels = torch.from_numpy(np.array(picture)).float()[None] / 255
    vae = TinyVAE(frames=model == "qwen-image")
    latent = vae.encode(torch.rand(1, 256, 256, 3))
    stand_ins: dict[str, tuple[Any, ...]] = {
        "UNETLoader": (tiny(model),), "VAELoader": (vae,), "CLIPLoader": (None,), "DualCLIPLoader": (None,),
        "LoadImage": (pixels[..., :3], 1 - pixels[..., 3]),
        "CLIPTextEncode": (prompt(model, 7, 1),), "SaveImage": (),
    }  # fmt: skip
    results: dict[str, tuple[Any, ...]] = {}
    pending = list(graph)
    while pending:
        name = next(n for n in pending if all(link[0] in results for link in links(graph[n])))
        pending.remove(name)
        kind, given = graph[name]["class_type"], graph[name]["inputs"]
        inputs = {key: results[at[0]][at[1]] if isinstance(at, list) else at for key, at in given.items()}
        inputs |= {key: small for key, small in SMALL.items() if key in inputs}
        if kind == "TextEncodeQwenImageEdit":
            results[name] = (edit_prompt(latent, len(inputs["prompt"])),)
        else:
            results[name] = stand_ins[kind] if kind in stand_ins else pack.call(kind, **inputs)
    canvas, mask, blended = results["5"][0], results["8"][0][0] > 0.5, results["16"][0]
    assert 0.02 < mask.float().mean() < 0.5
    assert torch.equal(blended[0][~mask], canvas[0][~mask])
    assert (blended[0][mask] - canvas[0][mask]).abs().mean() > 0.01
    context = results["13"][0]
    assert context.name and 1 <= context.anchors.count <= 4


def links(node: dict[str, Any]) -> list[list[Any]]:
    return [value for value in node["inputs"].values() if isinstance(value, list)]
