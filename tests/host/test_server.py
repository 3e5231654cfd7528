"""The pack in a running server, over HTTP and WebSocket, as the browser talks to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lazydiff.evaluation.laboratory import SMALL

from .running_server import PACK, TABLE, Server
from .templates import NAMES, OF_ONES_OWN, Prompt, first_edit, quickly, workflow

pytestmark = pytest.mark.host

# test_kv_templates.py runs the others with tiny models.
OURS = [name for name in NAMES if name not in OF_ONES_OWN]


def node(prompt: Prompt, kind: str) -> str:
    return next(number for number, each in prompt.items() if each["class_type"] == kind)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_nodes_and_templates_are_listed(server: Server) -> None:
    nodes = server.get("/object_info")
    assert {"LazyCheckpointLoader", "LazyContextEncode", "LazySample", "LazyContextApply", "PoissonBlend"} <= set(nodes)
    assert {"LazyCanvas", "LazyCanvasContext", "LazyCanvasEdit", "LazyVAEDecode"} <= set(nodes)
    assert set(server.get("/workflow_templates")["lazydiffusion"]) == set(NAMES)
    assert all((PACK / "workflows" / f"{name}.jpg").exists() for name in OURS)


@pytest.mark.parametrize("name", OURS)
def test_workflow_runs_and_leaves_the_visible_part_alone(server: Server, name: str) -> None:
    execution = server.run(quickly(workflow(name)))
    assert execution.end == "execution_success", execution.error
    results = [pixels(path) for path in server.pictures(execution)]
    assert results
    if name in ("04-blank-canvas", "11-auto-masked-edit", "12-prompt-difference-edit"):
        return  # everything is hole, or the model found it
    table = Image.open(PACK / "workflows" / "pictures" / "lazydiffusion-table.png")
    canvas, outside = np.asarray(table.convert("RGB")), np.asarray(table.getchannel("A")) == 255
    if name in ("03-chain-of-four-edits", "09-chain-on-a-canvas", "10-many-masks-many-prompts"):
        holes = pixels(PACK / "workflows" / "pictures" / "lazydiffusion-holes.png")
        outside = holes.max(-1) == 0
    for result in results:
        assert (result != canvas).any() or name == "01-first-edit"  # the canvas, on which nothing is kept yet
        assert (result[outside] == canvas[outside]).all()


def test_edit_is_the_command_lines(server: Server, tmp_path: Path) -> None:
    """First edit, by the nodes and by `python -m lazydiff edit`: the same picture, up to one grey level of rounding."""
    from lazydiff.cli.main import main

    prompt = first_edit()
    settings = prompt[node(prompt, "LazySample")]["inputs"]
    settings["steps"] = 20  # divides 1000, the host's table of noise levels
    (ours,) = server.pictures(server.run(prompt))
    table = Image.open(server.folder / "input" / TABLE)
    table.convert("RGB").save(tmp_path / "image.png")
    table.getchannel("A").point(lambda alpha: 255 - alpha).save(tmp_path / "mask.png")
    text = prompt[settings["positive"][0]]["inputs"]["text"]
    options = {"checkpoint": SMALL, "image": tmp_path / "image.png", "mask": tmp_path / "mask.png", "prompt": text,
               "seed": settings["seed"], "steps": 20, "guidance": settings["cfg"], "output": tmp_path}  # fmt: skip
    assert main(["edit", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]) == 0
    theirs = tmp_path / f"edit-{settings['seed']}.png"
    assert np.abs(pixels(ours).astype(int) - pixels(theirs)).max() <= 1


def test_one_context_is_encoded_once_and_one_seed_reruns_one_sampler(server: Server) -> None:
    prompt = workflow("02-one-context-many-seeds-and-prompts")
    samplers = [number for number, each in prompt.items() if each["class_type"] == "LazySample"]
    for number in samplers:
        prompt[number]["inputs"].update(seed=1000 + int(number), steps=2, variations=1)
    prompt[node(prompt, "LazyContextEncode")]["inputs"]["grow"] = 1
    first = server.run(prompt)
    assert first.executed.count(node(prompt, "LazyContextEncode")) == 1
    assert all(first.executed.count(number) == 1 for number in samplers)

    prompt[samplers[0]]["inputs"]["seed"] += 1
    again = server.run(prompt)
    kinds = [prompt[number]["class_type"] for number in again.executed]
    assert sorted(kinds) == sorted(["LazySample", "LazyVAEDecode", "PoissonBlend", "SaveImage"])
    assert samplers[0] in again.executed


def test_previews_arrive_each_step(server: Server) -> None:
    prompt = first_edit()
    prompt[node(prompt, "LazySample")]["inputs"].update(seed=77, steps=7)
    assert server.run(prompt).previews == 7


def test_interrupt_stops_within_a_step_and_the_next_prompt_runs(server: Server) -> None:
    prompt = first_edit()
    sampler = node(prompt, "LazySample")
    prompt[sampler]["inputs"].update(seed=78, steps=400, variations=32)  # steps that take longer than a message
    steps: list[int] = []

    def watch(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data.get("node") == sampler:
            steps.append(data["value"])
            if len(steps) == 3:
                server.post("/interrupt", {})

    execution = server.run(prompt, watch)
    assert execution.end == "execution_interrupted"
    assert steps[-1] <= 3 + 5  # the step in progress, and those that passed while the message was on its way
    prompt[sampler]["inputs"].update(steps=2)
    assert server.run(prompt).end == "execution_success"


def test_encoding_shows_its_progress(server: Server) -> None:
    prompt = first_edit()
    encoder = node(prompt, "LazyContextEncode")
    prompt[encoder]["inputs"]["grow"] = 3
    prompt[node(prompt, "LazySample")]["inputs"]["steps"] = 2
    events = server.run(prompt).events
    assert len([data for kind, data in events if kind == "progress" and data.get("node") == encoder]) >= 2


def test_info_says_what_a_step_costs(server: Server) -> None:
    prompt = first_edit()
    prompt[node(prompt, "LazySample")]["inputs"]["steps"] = 2
    prompt[node(prompt, "LazyContextEncode")]["inputs"]["feather"] = 1  # so that nothing is left from before
    outputs = server.run(prompt).history["outputs"]
    (text,) = outputs[node(prompt, "LazyContextInfo")]["text"]
    assert "96×96" in text and "tokens" in text and "%" in text and "MB" in text


# Bad graphs: refused in words, and the queue goes on


def solid(value: float, width: int, height: int) -> dict[str, Any]:
    return {"class_type": "SolidMask", "inputs": {"value": value, "width": width, "height": height}}


def with_mask(value: float, width: int = 96, height: int = 96) -> Prompt:
    prompt = first_edit()
    prompt["90"] = solid(value, width, height)
    prompt["5"]["inputs"]["mask"] = prompt["9"]["inputs"]["mask"] = ["90", 0]
    return prompt


def with_canvas(width: int, height: int, batch: int = 1, masks: int = 1) -> Prompt:
    prompt = with_mask(1.0, width, height)
    color = {"width": width, "height": height, "batch_size": batch, "color": 0x808080}
    prompt["91"] = {"class_type": "EmptyImage", "inputs": color}
    prompt["5"]["inputs"]["image"] = prompt["9"]["inputs"]["destination"] = prompt["8"]["inputs"]["canvas"] = ["91", 0]
    if masks > 1:
        prompt["92"] = {"class_type": "EmptyImage", "inputs": {**color, "batch_size": masks, "color": 0xFFFFFF}}
        prompt["93"] = {"class_type": "ImageToMask", "inputs": {"image": ["92", 0], "channel": "red"}}
        prompt["5"]["inputs"]["mask"] = prompt["9"]["inputs"]["mask"] = ["93", 0]
    return prompt


def other_canvas() -> Prompt:
    """A context of one canvas, a latent of another."""
    prompt = workflow("07-stock-sampler-custom-advanced")
    prompt["90"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 96, "batch_size": 1}}
    prompt["14"]["inputs"]["latent_image"] = ["90", 0]
    return prompt


def other_model(server: Server) -> Prompt:
    """A context of one model, sampled by another."""
    changed = {name: tensor.clone() for name, tensor in load_file(SMALL).items()}
    changed["model.diffusion_model.encoder.norm.bias"] += 1
    changed["model.diffusion_model.ctx_fuse.bias"] += 1
    changed["model.diffusion_model.ctx_fuse.weight"] += 1
    write(server, "other.safetensors", changed, SMALL)
    prompt = first_edit()
    prompt["90"] = {"class_type": "LazyCheckpointLoader", "inputs": {"checkpoint": "other.safetensors"}}
    prompt["7"]["inputs"]["model"] = ["90", 0]
    return prompt


def write(server: Server, name: str, tensors: dict[str, torch.Tensor], like: Path) -> Path:
    from safetensors import safe_open

    with safe_open(like, "pt") as file:
        metadata = file.metadata()
    target = server.folder / "models" / "lazydiffusion" / name
    target.parent.mkdir(exist_ok=True)
    save_file(tensors, target, metadata)
    return target


def damaged(server: Server) -> Prompt:
    target = server.folder / "models" / "lazydiffusion" / "damaged.safetensors"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(SMALL.read_bytes()[:-5000])
    prompt = first_edit()
    prompt["1"]["inputs"]["checkpoint"] = target.name
    return prompt


def incomplete(server: Server) -> Prompt:
    tensors = load_file(SMALL)
    del tensors["model.diffusion_model.blocks.3.mlp.fc1.weight"]
    prompt = first_edit()
    prompt["1"]["inputs"]["checkpoint"] = write(server, "incomplete.safetensors", tensors, SMALL).name
    return prompt


def nan_latent(server: Server) -> Prompt:
    """From a file, as Save Latent writes them."""
    tensors = {"latent_tensor": torch.full((1, 72, 64, 64), float("nan")), "latent_format_version_0": torch.tensor([])}
    save_file(tensors, server.folder / "input" / "nan.latent")
    prompt = workflow("06-stock-ksampler")
    prompt["90"] = {"class_type": "LoadLatent", "inputs": {"latent": "nan.latent"}}
    prompt["6"]["inputs"]["samples"] = ["90", 0]
    return prompt


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda server: with_mask(1.0, 64, 64), "the mask is 64×64 and the image 96×96"),
        (lambda server: with_canvas(96, 96, batch=2, masks=3), "2 images and 3 masks"),
        (lambda server: other_canvas(), "this context was made for 512×512, the canvas is 128×96: encode it again"),
        (other_model, "another model"),
        (damaged, "not a whole safetensors file"),
        (incomplete, "blocks.3.mlp.fc1.weight"),
        (nan_latent, "not numbers"),
    ],
)
def test_bad_graph_is_refused_in_words(server: Server, make: Any, message: str) -> None:
    execution = server.run(make(server))
    assert execution.end == "execution_error", execution.history
    assert message in execution.error
    assert server.run(with_mask(0.0)).end == "execution_success"  # the queue goes on


def test_missing_checkpoint_is_refused_by_name(server: Server) -> None:
    """0.33 sees before anything runs that it is not in the list, 0.3.64 when it is to be loaded."""
    prompt = first_edit()
    prompt["1"]["inputs"]["checkpoint"] = "missing.safetensors"
    execution = server.run(prompt)
    assert execution.end in ("refused", "execution_error")
    assert "missing.safetensors" in json.dumps(execution.history)


def test_wrong_socket_is_refused_before_anything_runs(server: Server) -> None:
    prompt = first_edit()
    prompt["7"]["inputs"]["context"] = ["5", 1]
    del prompt["6"]  # an output of its own, for which the rest would run
    execution = server.run(prompt)
    assert execution.end == "refused" and "LAZY_CONTEXT" in json.dumps(execution.history)


def test_empty_mask_returns_the_canvas(server: Server) -> None:
    execution = server.run(with_mask(0.0))
    assert execution.end == "execution_success", execution.error


@pytest.mark.parametrize(("batch", "masks"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_full_masks_and_batches(server: Server, batch: int, masks: int) -> None:
    prompt = with_canvas(96, 96, batch, masks)
    prompt["7"]["inputs"]["steps"] = 2
    execution = server.run(prompt)
    assert execution.end == "execution_success", execution.error
    assert len(server.pictures(execution)) == max(batch, masks)
