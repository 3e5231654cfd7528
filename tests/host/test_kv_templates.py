"""The templates for stock models, run with tiny stand-ins for what they load."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from .in_process import Pack
from .running_server import PACK
from .templates import workflow
from .tiny_models import TinyVAE, prompt, tiny

pytestmark = pytest.mark.host

Results = dict[str, tuple[Any, ...]]


def run(
    pack: Pack, template: str, stand_ins: dict[str, Any], smaller: dict[str, float]
) -> tuple[dict[str, Any], Results]:
    """A template with each node's results; stand_ins: by kind of node, results or what makes them of the inputs."""
    graph = workflow(template)
    results: Results = {}
    while pending := [name for name in graph if name not in results]:
        name = next(name for name in pending if all(link[0] in results for link in links(graph[name])))
        kind, given = graph[name]["class_type"], graph[name]["inputs"]
        inputs = {key: results[at[0]][at[1]] if isinstance(at, list) else at for key, at in given.items()}
        inputs |= {key: small for key, small in smaller.items() if key in inputs}
        if kind in stand_ins:
            results[name] = stand_ins[kind](**inputs) if callable(stand_ins[kind]) else stand_ins[kind]
        else:
            results[name] = pack.call(kind, **inputs)
    return graph, results


def links(node: dict[str, Any]) -> list[list[Any]]:
    return [value for value in node["inputs"].values() if isinstance(value, list)]


def picture(image: str) -> tuple[Tensor, Tensor]:
    """What Load Image makes of a template's picture."""
    pixels = Image.open(PACK / "workflows" / "pictures" / image).convert("RGBA")
    values = torch.from_numpy(np.array(pixels)).float()[None] / 255
    return values[..., :3], 1 - values[..., 3]


@pytest.mark.parametrize(("template", "model"), [("15-flux-fill", "flux-fill"), ("16-qwen-image-edit", "qwen-image")])
def test_template_edits_the_hole_alone(pack: Pack, template: str, model: str, sessions: list[Any]) -> None:
    """Every node of the template but its loaders and text encoders is executed as it stands, on a smaller picture."""
    vae = TinyVAE(frames=model == "qwen-image")
    seen = vae.encode(torch.rand(1, 256, 256, 3))
    stand_ins = {
        "UNETLoader": (tiny(model),), "VAELoader": (vae,), "CLIPLoader": (None,), "DualCLIPLoader": (None,),
        "LoadImage": picture, "CLIPTextEncode": (prompt(model, 7, 1),), "SaveImage": (),
        "TextEncodeQwenImageEdit": lambda prompt, **unused: (edit_prompt(seen, len(prompt)),),
        "FluxKontextImageScale": lambda image: (small(image),),
    }  # fmt: skip
    _, results = run(pack, template, stand_ins, {"steps": 4})
    canvas, mask, blended = results["5"][0], results["8"][0][0] > 0.5, results["16"][0]
    assert 0.02 < mask.float().mean() < 0.5
    assert torch.equal(blended[0][~mask], canvas[0][~mask])
    assert (blended[0][mask] - canvas[0][mask]).abs().mean() > 0.01
    (session,) = sessions
    assert results["13"][0].name and session.replayed and not session.recorded


# Template, what it loads, its VAE, and how wide the picture is in the test.
OF_THIS_YEAR = [
    ("17-z-image-turbo", "z-image", TinyVAE(), 480),
    ("18-flux2-klein", "flux2", TinyVAE(128, cell=16), 480),
    ("19-qwen-image-edit-2511", "qwen-image", TinyVAE(frames=True), 480),
    ("20-large-photograph", "flux-fill", TinyVAE(), 2560),
    ("21-outpainting", "flux-fill", TinyVAE(), 333),
]


@pytest.mark.parametrize(("template", "model", "vae", "width"), OF_THIS_YEAR)
def test_template_changes_the_hole_of_a_picture_of_any_size(
    pack: Pack, template: str, model: str, vae: TinyVAE, width: int, sessions: list[Any]
) -> None:
    """Every node but loaders and text encoders is executed with the settings that ship, but for the enlarged size."""

    def photograph(image: str) -> tuple[Tensor, Tensor]:
        pixels, mask = picture(image)
        size = round(width * pixels.shape[1] / pixels.shape[2]), width
        smaller = torch.nn.functional.interpolate(pixels.movedim(-1, 1), size).movedim(1, -1)
        return smaller, torch.nn.functional.interpolate(mask[:, None], size)[:, 0]

    def told(prompt: str, image1: Tensor, **unused: Any) -> tuple[Any]:
        return (edit_prompt(vae.encode(image1), len(prompt)),)

    network = tiny(model)
    stand_ins = {
        "UNETLoader": (network,), "LoraLoaderModelOnly": (network,), "VAELoader": (vae,), "CLIPLoader": (None,),
        "DualCLIPLoader": (None,), "LoadImage": photograph, "CLIPTextEncode": (prompt(model, 7, 1),), "SaveImage": (),
        "TextEncodeQwenImageEditPlus": told,
    }  # fmt: skip
    graph, results = run(pack, template, stand_ins, {"zoom_megapixels": 0.06, "right": 96})
    (blend,) = (name for name, node in graph.items() if node["class_type"] == "PoissonBlend")
    given = graph[blend]["inputs"]
    canvas, mask, blended = (results[at[0]][at[1]] for at in (given["destination"], given["mask"], [blend, 0]))
    hole = mask[0] > 0.5
    assert canvas.shape == blended.shape and canvas.shape[2] >= width and 0.005 < hole.float().mean() < 0.5
    assert torch.equal(blended[0][~hole], canvas[0][~hole])
    assert (blended[0][hole] - canvas[0][hole]).abs().mean() > 0.01
    (session,) = sessions
    assert session.replayed and not session.recorded


@pytest.mark.parametrize(("template", "model"), [("22-two-edits-sd15", "sd15"), ("23-two-edits-sdxl", "sdxl")])
def test_edits_in_a_chain_from_prompts_alone(
    pack: Pack, template: str, model: str, sessions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node but loader and text encoder is executed. What a random network finds different is everywhere, so that
    of its masks a corner is taken; the second edit is of what the first has left."""
    finder = pack.part("nodes.difference_mask")
    find = finder.find_difference_mask
    corners = iter([(slice(0, 64), slice(0, 64)), (slice(160, 224), slice(160, 224))])

    def in_a_corner(*given: Any) -> tuple[Tensor, Tensor]:
        mask, heat = find(*given)
        corner = torch.zeros_like(mask)
        corner[(slice(None), *next(corners))] = 1
        return corner, heat

    monkeypatch.setattr(finder, "find_difference_mask", in_a_corner)
    stand_ins = {
        "CheckpointLoaderSimple": (tiny(model), None, TinyVAE(4)), "PreviewImage": (), "SaveImage": (),
        "CLIPTextEncode": lambda text, clip: (prompt(model, 7, len(text)),),
    }  # fmt: skip
    smaller = {"width": 256, "height": 256, "steps": 6, "first": 2, "source_text": "", "target_text": ""}
    _, results = run(pack, template, stand_ins, smaller)
    picture, first, second = (results[name][0] for name in ("9", "15", "21"))
    contexts = [results[name][0] for name in ("12", "18")]
    assert all(context.name for context in contexts)
    assert all(session.replayed and session.recorded < session.replayed for session in sessions)
    assert len(sessions) == 2
    assert (first - picture).abs().max() > 0.01 and torch.equal(first[:, 80:], picture[:, 80:])
    assert (second - first).abs().max() > 0.01 and torch.equal(second[:, :140], first[:, :140])


def small(image: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(image.movedim(-1, 1), (160, 240)).movedim(1, -1)


def edit_prompt(latent: Tensor, seed: int) -> list[list[Any]]:
    return prompt("qwen-image", 7, seed, reference_latents=[latent])


SWAPPED = (
    "02-one-context-many-seeds-and-prompts", "03-chain-of-four-edits", "05-sketch-guided",
    "07-stock-sampler-custom-advanced",
)  # fmt: skip


@pytest.mark.parametrize("template", SWAPPED)
def test_our_templates_work_with_another_loader(pack: Pack, template: str, sessions: list[Any]) -> None:
    """The small model's templates, with a stock model in its place."""
    stand_ins = {
        "LazyCheckpointLoader": (tiny("flux"), None, TinyVAE()), "LoadImage": picture, "SaveImage": (),
        "CLIPTextEncode": lambda text, clip: (prompt("flux", 7, len(text)),),
    }  # fmt: skip
    graph, results = run(pack, template, stand_ins, {"steps": 4})
    kinds = {name: node["class_type"] for name, node in graph.items()}
    contexts = [results[name][0] for name, kind in kinds.items() if kind == "LazyContextEncode"]
    assert contexts and all(context.name == "Flux" for context in contexts)
    assert len(sessions) >= len(contexts) and all(session.replayed and not session.recorded for session in sessions)
    for name in (name for name, kind in kinds.items() if kind == "PoissonBlend"):
        wires = (graph[name]["inputs"][key] for key in ("destination", "mask"))
        destination, mask = (results[wire[0]][wire[1]] for wire in wires)
        blended, outside = results[name][0], mask[0] <= 0.5
        assert torch.equal(blended[:, outside], destination.expand_as(blended)[:, outside])
        assert (blended - destination).abs().max() > 0.01


@pytest.mark.parametrize(("template", "finder"), [("11-auto-masked-edit", "3"), ("12-prompt-difference-edit", "7")])
def test_templates_that_find_their_mask_change_little_else(pack: Pack, template: str, finder: str) -> None:
    """With the small model, as they ship: the object is covered, and beyond the blend's growth no pixel is touched."""
    graph, results = run(pack, template, {"LoadImage": picture, "SaveImage": (), "PreviewImage": ()}, {})
    (mask, _), (canvas, _) = results[finder], results["2"]
    (blended,) = next(results[name] for name, node in graph.items() if node["class_type"] == "PoissonBlend")
    assert 0.02 < mask.mean() < 0.1
    rows, columns = mask[0].nonzero().float().mean(0)
    assert abs(rows - 52) < 8 and abs(columns - 44) < 8  # the object's middle
    near = torch.nn.functional.max_pool2d(mask[:, None], 17, 1, 8)[0, 0] > 0
    assert torch.equal(blended[0][~near], canvas[0][~near])
    assert (blended - canvas)[0][mask[0] > 0].abs().mean() > 0.1
