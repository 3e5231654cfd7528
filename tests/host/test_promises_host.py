"""What the documents promise of the nodes, one test for each promise; the library's are in ../test_promises.py."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from .in_process import Pack
from .running_server import PACK, Server
from .templates import first_edit, workflow
from .tiny_models import UNETS, TinyVAE, prompt, tiny

pytestmark = pytest.mark.host

README, NODES = ((PACK / name).read_text("utf-8") for name in ("README.md", "docs/nodes.md"))


def canvas_and_mask() -> tuple[Tensor, Tensor]:
    """As Load Image returns them: [1, H, W, 3] and [1, H, W]."""
    mask = torch.zeros(1, 256, 320)
    mask[:, 72:150, 130:210] = 1
    return torch.rand(1, 256, 320, 3), mask


def test_the_pack_needs_no_package_that_comfyui_lacks(host: ModuleType) -> None:
    def names(text: str) -> set[str]:
        return {re.split(r"[<>=~ ]", line)[0].lower() for line in text.splitlines() if line and line[0].isalpha()}

    listed = re.search(r"^dependencies = \[(.*?)^\]", (PACK / "pyproject.toml").read_text("utf-8"), re.M | re.S)
    assert listed is not None
    ours = names("\n".join(re.findall(r'"(.*?)"', listed[1])))
    assert ours and ours <= names((Path(host.__file__).parent / "requirements.txt").read_text("utf-8"))


def test_every_node_that_is_named_exists_and_every_node_is_named(pack: Pack) -> None:
    named = set(re.findall(r"^\| ([A-Z][\w ]+) \|", NODES, re.M)) - {"Node"}
    ours = {
        schema.display_name
        for kind in pack.host.NODE_CLASS_MAPPINGS.values()
        if hasattr(kind, "GET_SCHEMA") and (schema := kind.GET_SCHEMA()).category == "LazyDiffusion"
    }
    assert named == ours


def test_each_node_has_a_help_page(pack: Pack) -> None:
    for name, kind in pack.host.NODE_CLASS_MAPPINGS.items():
        if hasattr(kind, "GET_SCHEMA") and kind.GET_SCHEMA().category == "LazyDiffusion":
            assert (PACK / "web" / "docs" / f"{name}.md").is_file(), name


def test_five_nodes_make_a_stock_checkpoint_lazy(pack: Pack) -> None:
    """A tiny Flux: the canvas outside the mask stays bit-identical, and steps between anchors compute less."""
    model, vae = tiny("flux"), TinyVAE()
    image, mask = canvas_and_mask()
    positive, negative = prompt("flux", 9, 1), prompt("flux", 5, 2)
    counts: list[int] = []
    network = model.model.diffusion_model
    hook = network.final_layer.register_forward_pre_hook(lambda module, args: counts.append(args[0].shape[1]))
    try:
        context, _ = pack.call("LazyContextEncode", model, vae, image, mask, 0, 0, anchors=1)
        (latent,) = pack.call("LazySample", model, context, positive, negative, 1, 4, 1.0, "euler", "simple", 1.0, 1)
    finally:
        hook.remove()
    (decoded,) = pack.call("VAEDecode", vae, latent)
    (result,) = pack.call("PoissonBlend", image, decoded, mask, "source", 0)
    outside = mask == 0
    assert torch.equal(result[outside], image[outside]) and not torch.equal(result[~outside], image[~outside])
    assert len(counts) == 4 and max(counts[1:]) < counts[0] / 2


# As the README names them; channels of the latent; whether it has frames.
LAZY = {
    "flux": ("Flux (dev", 16, False), "flux-schnell": ("schnell", 16, False), "flux-fill": ("Fill", 16, False),
    "chroma": ("Chroma", 16, False), "sd3": ("SD3 and SD3.5", 16, False), "qwen-image": ("Qwen-Image", 16, True),
    "lumina2": ("Lumina 2", 16, False), "z-image": ("Z-Image", 16, False), "auraflow": ("AuraFlow", 4, False),
    "wan": ("Wan (single pictures)", 16, True), "pixart-alpha": ("PixArt-α", 4, False),
    "pixart-sigma": ("PixArt-α and Σ", 4, False), "hunyuan-dit": ("HunyuanDiT", 4, False),
}  # fmt: skip


@pytest.mark.parametrize("name", LAZY)
def test_this_works_for_every_checkpoint_that_is_named(pack: Pack, name: str) -> None:
    text, channels, frames = LAZY[name]
    assert text in README.split("This works for")[1].split("## ")[0]
    context, _ = pack.call("LazyContextEncode", tiny(name), TinyVAE(channels, frames), *canvas_and_mask(), 0, 0)
    assert context.name and 0 < context.hole.count < context.hole.total


@pytest.mark.parametrize("name", UNETS)
def test_sd_15_and_sdxl_become_lazy(pack: Pack, name: str) -> None:
    context, _ = pack.call("LazyContextEncode", tiny(name), TinyVAE(4), *canvas_and_mask(), 0, 0)
    assert context.name and 0 < context.hole.count < context.hole.total


def test_a_graph_with_its_seed_gives_one_picture_whatever_ran_before(pack: Pack) -> None:
    """Of a stock checkpoint, on one context: alone, after another seed and prompt, and after itself."""
    model, vae = tiny("flux"), TinyVAE()
    positive, other, negative = prompt("flux", 9, 1), prompt("flux", 9, 3), prompt("flux", 5, 2)
    context, _ = pack.call("LazyContextEncode", model, vae, *canvas_and_mask(), 0, 0)

    def sampled(words: Any, seed: int) -> Tensor:
        rest = (4, 1.0, "euler", "simple", 1.0, 1)
        return pack.call("LazySample", model, context, words, negative, seed, *rest)[0]["samples"]

    alone = sampled(positive, 1)
    assert not torch.equal(sampled(other, 2), alone)
    assert torch.equal(sampled(positive, 1), alone) and torch.equal(sampled(positive, 1), alone)


def test_another_seed_or_prompt_does_not_encode_the_canvas_again(server: Server) -> None:
    graph = first_edit()
    (sampler,) = (node["inputs"] for node in graph.values() if node["class_type"] == "LazySample")
    sampler.update(seed=4001, steps=2)
    assert server.run(graph).end == "execution_success"
    for change in ("seed", "prompt"):
        if change == "seed":
            sampler["seed"] += 1
        else:
            graph[sampler["positive"][0]]["inputs"]["text"] = "a red fish"
        execution = server.run(graph)
        kinds = {graph[number]["class_type"] for number in execution.executed}
        assert execution.end == "execution_success" and "LazySample" in kinds and "LazyContextEncode" not in kinds


def test_the_template_of_the_packs_own_model_runs_as_it_is(server: Server) -> None:
    """*Templates* → *lazydiffusion* → *01-first-edit*, **Run**."""
    assert "01-first-edit" in server.get("/workflow_templates")["lazydiffusion"]
    graph = workflow("01-first-edit")
    execution = server.run(graph)
    assert execution.end == "execution_success", execution.error
    assert server.pictures(execution) or not execution.executed
