"""The templates as files: their order, what one reads in them, and pictures of one's own in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from .in_process import Pack
from .running_server import PACK, Server
from .templates import NAMES, OF_ONES_OWN, quickly, template, workflow

pytestmark = pytest.mark.host

OURS = [name for name in NAMES if "LazyCheckpointLoader" in json.dumps(workflow(name))]
PICTURES = [f"lazydiffusion-{name}.png" for name in ("table", "fish", "house")]


def test_names_sort_by_their_numbers_and_files_of_ones_own_come_last() -> None:
    assert [int(name[:2]) for name in NAMES] == list(range(1, len(NAMES) + 1))
    assert [name in OF_ONES_OWN for name in NAMES] == sorted(name in OF_ONES_OWN for name in NAMES)
    assert len(OF_ONES_OWN) == 10
    assert {path.stem for path in (PACK / "workflows").glob("*.jpg")} == set(NAMES)
    assert {path.stem for path in (PACK / "workflows" / "api").glob("*.json")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_template_can_be_read(name: str) -> None:
    """It begins with what to do, every node lies in a titled group, and no two prompts are called alike."""
    graph = template(name)
    notes = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1 and "**Run**" in notes[0]["widgets_values"][0]
    assert all(group["title"] for group in graph["groups"])
    for node in graph["nodes"]:
        if node not in notes:
            x, y = node["pos"]
            boxes = [group["bounding"] for group in graph["groups"]]
            assert any(a <= x <= a + w and b <= y <= b + h for a, b, w, h in boxes), node["title"]
    prompts = [node["title"] for node in graph["nodes"] if node["type"].startswith(("CLIPText", "TextEncode"))]
    assert len(set(prompts)) == len(prompts) and not any("Encode" in title for title in prompts)


@pytest.mark.parametrize("name", OF_ONES_OWN)
def test_files_have_addresses_where_the_host_looks_for_them(name: str) -> None:
    places = {
        "unet_name": "diffusion_models", "vae_name": "vae", "clip_name": "text_encoders", "lora_name": "loras",
        "ckpt_name": "checkpoints",
    }  # fmt: skip
    for node in template(name)["nodes"]:
        loaders = "CLIPLoader", "UNETLoader", "VAELoader", "LoraLoaderModelOnly", "CheckpointLoaderSimple"
        if not node["type"].endswith(loaders):
            continue
        inputs = workflow(name)[str(node["id"])]["inputs"]
        wanted = {(file, places[key.rstrip("12")]) for key, file in inputs.items() if key.rstrip("12") in places}
        models = node["properties"].get("models", [])
        if ("lazydiffusion-pixart-1024.safetensors", "diffusion_models") in wanted:
            assert not models  # no such file is published
            continue
        assert {(model["name"], model["directory"]) for model in models} == wanted
        assert all(model["url"].startswith("https://huggingface.co/") for model in models)
        assert all(model["url"].endswith("/" + model["name"]) for model in models)


@pytest.mark.parametrize("name", OURS)
def test_a_picture_of_any_size_comes_back_at_its_own_size(server: Server, name: str) -> None:
    """Instead of the one that ships; new in the holes, the same bit by bit outside."""
    graph = workflow(name)
    loads = [node for node in graph.values() if node["inputs"].get("image") in PICTURES]
    rng = np.random.default_rng(0)
    canvas = np.kron(rng.integers(60, 200, (17, 25, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 200×136 px
    alpha = np.full(canvas.shape[:2], 255, np.uint8)
    alpha[50:90, 100:150] = 0
    Image.fromarray(np.dstack([canvas, alpha])).save(server.folder / "input" / "own.png")
    for node in loads:
        node["inputs"]["image"] = "own.png"
    execution = server.run(quickly(graph))
    assert execution.end == "execution_success", execution.error
    results = [np.asarray(Image.open(path).convert("RGB")) for path in server.pictures(execution)]
    assert results
    if not loads:
        return  # from a blank canvas
    assert all(result.shape == canvas.shape for result in results)
    if any(node["class_type"] in ("AttentionMask", "PromptDifferenceMask") for node in graph.values()):
        return  # the model has found the hole, if any
    holes = Image.open(PACK / "workflows" / "pictures" / "lazydiffusion-holes.png").resize((200, 136), 0)
    painted = np.asarray(holes).max(-1) > 0 if "holes" in json.dumps(graph) else alpha == 0
    near = painted
    for each in range(-3, 4):  # stretched edges are soft
        near = near | np.roll(painted, each, 0) | np.roll(painted, each, 1)
    for result in results:
        assert (result[~near] == canvas[~near]).all()
        assert (result != canvas).any()


@pytest.mark.parametrize(("width", "height"), [(768, 512), (512, 768), (1000, 1000), (4000, 3000), (640, 427)])
def test_photographs_for_stock_models_are_scaled_to_sides_that_they_take(pack: Pack, width: int, height: int) -> None:
    """About a megapixel, multiples of 16, and at most a few per cent of an edge is lost."""
    (scaled,) = pack.call("FluxKontextImageScale", torch.rand(1, height, width, 3))
    rows, columns = scaled.shape[1:3]
    assert rows % 16 == columns % 16 == 0 and 0.9e6 < rows * columns < 1.2e6
    kept = min(columns / rows, width / height) / max(columns / rows, width / height)
    assert kept > 0.93
