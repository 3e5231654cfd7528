"""Our nodes on stock models: the same graph as with ours, whatever the architecture."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from torch import Tensor

from .in_process import Pack
from .tiny_models import TinyVAE, prompt, tiny

pytestmark = pytest.mark.host

SIZE = 256, 320


class Graph:
    """A canvas with a hole, a tiny model, prompts and a VAE."""

    def __init__(self, pack: Pack, name: str, rows: int = 1):
        self.call, self.model = pack.call, tiny(name)
        form = self.model.model.latent_format
        cell = pack.part("nodes.host.architectures").downscale(self.model)
        self.vae = TinyVAE(form.latent_channels, form.latent_dimensions == 3, cell)
        self.image, self.mask = torch.rand(rows, *SIZE, 3), torch.zeros(rows, *SIZE)
        for row in range(rows):
            self.mask[row, 75:150, 130 + 30 * row : 210] = 1
        self.positive, self.negative = prompt(name, 9, 1), prompt(name, 5, 2)

    def encode(self, **settings: Any) -> tuple[Any, dict[str, Tensor]]:
        return self.call("LazyContextEncode", self.model, self.vae, self.image, self.mask, 0, 0, **settings)

    def sample(self, context: Any, seed: int = 1, sampler: str = "euler", variations: int = 1, **more: Any) -> Tensor:
        given = {"denoise": 1.0, "cfg": 3.0, **more}
        cfg, denoise = given.pop("cfg"), given.pop("denoise")
        args = context, self.positive, self.negative, seed, 4, cfg, sampler, "simple", denoise, variations
        return self.call("LazySample", self.model, *args, **given)[0]["samples"]


CANVASES = [
    "flux", "qwen-image", "wan", "pixart-sigma", "flux2", "krea2", "mage-flow", "anima", "chroma-radiance",
    "hunyuan-image",
]  # fmt: skip


@pytest.mark.parametrize("name", CANVASES)
def test_from_canvas_to_blended_picture(pack: Pack, name: str) -> None:
    graph = Graph(pack, name)
    context, latent = graph.encode(anchors=2)
    samples = graph.sample(context, variations=2)
    shown = (latent["noise_mask"] == 0).expand_as(latent["samples"])
    for picture in samples.split(1):
        assert torch.equal(picture[shown], latent["samples"][shown])
        assert not torch.equal(picture, latent["samples"])
    (pixels,) = pack.call("VAEDecode", graph.vae, {"samples": samples})
    (blended,) = pack.call("PoissonBlend", graph.image, pixels, graph.mask, "source", 0)
    outside = (graph.mask == 0)[0]
    assert blended.shape == (2, *SIZE, 3)
    for picture in blended:
        assert torch.equal(picture[outside], graph.image[0][outside])
        assert (picture - graph.image[0])[~outside].abs().mean() > 0.01


def sampled(
    pack: Pack, node: str, model: Any, context: Any, latent: dict[str, Tensor], positive: Any, negative: Any
) -> Tensor:
    """Two steps on a context by our sampler, or by the host's with the context applied."""
    settings, prompts = (1, 2, 3.0, "euler", "simple"), (positive, negative)
    if node == "LazySample":
        return pack.call(node, model, context, *prompts, *settings, 1.0, 1)[0]["samples"]
    (model,) = pack.call("LazyContextApply", model, context)
    return pack.call(node, model, *settings, *prompts, latent, 1.0)[0]["samples"]


@pytest.mark.parametrize("node", ["LazySample", "KSampler"])
@pytest.mark.parametrize("name", ["flux", "pixart-sigma", "sd3", "qwen-image"])
def test_only_cells_that_the_mask_touches_change(pack: Pack, name: str, node: str) -> None:
    """The paper's equation 5 at the latent's resolution: of a token's four cells, two."""
    graph = Graph(pack, name)
    graph.mask = torch.zeros(1, *SIZE)
    graph.mask[:, 101:104, 150:153] = 1
    context, latent = graph.encode(anchors=1)
    out = sampled(pack, node, graph.model, context, latent, graph.positive, graph.negative)
    assert context.hole.count == 1 and latent["noise_mask"].sum() == 4
    changed = (out != latent["samples"]).any(1).reshape(32, 40).nonzero()
    assert changed.tolist() == [[12, 18], [12, 19]]


def test_stock_sampler_with_the_context_applied_is_lazy_sample(pack: Pack) -> None:
    graph = Graph(pack, "flux")
    context, latent = graph.encode(anchors=2)
    expected = graph.sample(context)
    (model,) = pack.call("LazyContextApply", graph.model, context)
    args = 1, 4, 3.0, "euler", "simple", graph.positive, graph.negative, latent, 1.0
    assert torch.equal(pack.call("KSampler", model, *args)[0]["samples"], expected)


def test_own_sampler_is_euler_on_stock_models(pack: Pack) -> None:
    graph = Graph(pack, "sd3")
    own, euler = (graph.sample(graph.encode()[0], sampler=name) for name in ("ancestral (as trained)", "euler"))
    assert torch.equal(own, euler)


def test_a_prompt_without_the_later_inputs_is_valid(pack: Pack) -> None:
    """As saved by the first release, in API format."""
    import execution

    encode = {"model": ["1", 0], "vae": ["1", 2], "image": ["2", 0], "mask": ["3", 0], "grow": 0, "feather": 0}
    graph = {
        "1": {"class_type": "LazyCheckpointLoader", "inputs": {"checkpoint": "lazydiffusion-small.safetensors"}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 96, "height": 96, "batch_size": 1, "color": 0}},
        "3": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 96, "height": 96}},
        "4": {"class_type": "LazyContextEncode", "inputs": encode},
        "5": {"class_type": "LazyContextInfo", "inputs": {"context": ["4", 0]}},
    }
    valid, error, outputs, errors = asyncio.run(execution.validate_prompt("1", graph, None))
    assert valid and outputs == ["5"], (error, errors)
    for name, bad in {"anchors": -1, "ring": 17, "cache_limit": -1, "levels": 65}.items():
        graph["4"]["inputs"] = {**encode, name: bad}
        assert not asyncio.run(execution.validate_prompt("1", graph, None))[0], name


def cache_of(pack: Pack, context: Any) -> Any:
    return pack.part("lazydiff.cache.kv_context").cache_of(context)


def test_info(pack: Pack) -> None:
    graph = Graph(pack, "flux")
    assert "kept so far" not in pack.call("LazyContextInfo", graph.encode(anchors=2, ring=2)[0])[0]
    graph.sample(recorded := graph.encode()[0])
    assert "kept so far: 2 recordings" in pack.call("LazyContextInfo", recorded)[0]  # of a level, of two prompts
    context, _ = graph.encode(anchors=2, ring=2, reuse_anchors=True)
    lines = pack.call("LazyContextInfo", context)[0].splitlines()
    assert lines[0].startswith("canvas: 320×256 px") and "Flux" in lines[0]
    assert f"hole: {context.hole.count} of 320 tokens" in lines[1]
    few = pack.part("lazydiff.cache.kv_cache").dilate(context.hole, 2).count
    assert f"{few} tokens" in lines[2] and "ring of 2" in lines[2]
    assert "0 anchors, 0.0 MB" in lines[3]
    graph.sample(context)
    line = pack.call("LazyContextInfo", context)[0].splitlines()[3]
    assert f"2 anchors, {cache_of(pack, context).bytes / 2**20:.1f} MB" in line


def test_nothing_is_recorded_twice_by_one_context_in_many_nodes(pack: Pack) -> None:
    graph = Graph(pack, "flux")
    context, _ = graph.encode(anchors=2, reuse_anchors=True)
    graph.sample(context)
    cache, kept = cache_of(pack, context), cache_of(pack, context).bytes
    first = context.canvas.clone()
    for seed in (2, 3):
        graph.positive = prompt("flux", 7, seed)
        graph.sample(context, seed, variations=2)
    assert cache.bytes == kept and cache.count == 2 and torch.equal(context.canvas, first)


def test_sketch(pack: Pack) -> None:
    """Where it is painted the result starts from it; the canvas outside stays."""
    for name in ("flux", "qwen-image"):
        graph = Graph(pack, name)
        context, latent = graph.encode(anchors=2)
        plain = graph.sample(context, denoise=0.5)
        sketched = graph.sample(context, denoise=0.5, sketch=1 - graph.image)
        hole = (latent["noise_mask"] > 0).expand_as(plain)
        assert torch.equal(plain[~hole], sketched[~hole]) and not torch.allclose(plain[hole], sketched[hole])


@pytest.mark.parametrize("name", ["flux", "qwen-image"])
def test_batch_of_canvases(pack: Pack, name: str) -> None:
    """Each with its own hole, by our sampler and by a stock one, which knows of the holes from the context too."""
    graph = Graph(pack, name, rows=2)
    context, latent = graph.encode(anchors=2)
    assert len(context.canvas) == 2 and context.hole.padded
    (model,) = pack.call("LazyContextApply", graph.model, context)
    args = 1, 4, 3.0, "euler", "simple", graph.positive, graph.negative
    shown = (latent["noise_mask"] == 0).expand_as(latent["samples"])
    stock = [pack.call("KSampler", model, *args, each, 1.0)[0] for each in (latent, {"samples": latent["samples"]})]
    assert torch.equal(stock[0]["samples"], stock[1]["samples"])
    for samples in (graph.sample(context), *(each["samples"] for each in stock)):
        assert torch.equal(samples[shown], latent["samples"][shown])
        assert all((samples - latent["samples"])[row].abs().max() > 0.1 for row in range(2))


def test_stock_mask_instead_of_ours(pack: Pack) -> None:
    """VAE Encode and Set Latent Noise Mask: as long as the mask is not larger than the context's hole."""
    graph = Graph(pack, "flux")
    context, ours = graph.encode(anchors=2)
    (model,) = pack.call("LazyContextApply", graph.model, context)
    (latent,) = pack.call("SetLatentNoiseMask", {"samples": ours["samples"]}, graph.mask)
    args = 1, 3, 3.0, "euler", "simple", graph.positive, graph.negative
    out = pack.call("KSampler", model, *args, latent, 1.0)[0]["samples"]
    shown = (ours["noise_mask"] == 0).expand_as(out)
    assert torch.equal(out[shown], ours["samples"][shown]) and not torch.equal(out, ours["samples"])
    (without,) = pack.call("KSampler", model, *args, {"samples": ours["samples"]}, 1.0)
    assert torch.equal(without["samples"][shown], ours["samples"][shown])


def test_empty_hole_gives_the_canvas_back(pack: Pack) -> None:
    graph = Graph(pack, "flux")
    graph.mask = torch.zeros(1, *SIZE)
    context, latent = graph.encode()
    assert torch.equal(graph.sample(context), latent["samples"])


def test_a_mask_of_another_size_is_refused_in_words(pack: Pack) -> None:
    graph = Graph(pack, "flux")
    graph.image = torch.rand(1, 256, 256, 3)
    with pytest.raises(ValueError, match="the mask is 320×256 and the image 256×256"):
        graph.encode()


def test_vae_of_another_model_is_refused_in_words(pack: Pack) -> None:
    graph = Graph(pack, "flux")
    graph.vae = TinyVAE(4)
    with pytest.raises(ValueError, match="latents of 4 channels, 40×32; the model needs 16, 40×32"):
        graph.encode()


def test_what_saved_graphs_mean(pack: Pack, sessions: list[Any]) -> None:
    """Without the later inputs, and with those of the release before: a number of anchors is still one."""
    graph = Graph(pack, "flux")
    dense = []
    for settings in ({}, {"anchors": 0, "reuse_anchors": False}, {"anchors": 2}, {"mode": "anchors"}, {"levels": 2}):
        graph.sample(graph.encode(**settings)[0])
        dense.append(sessions[-1].recorded)
    assert dense[:3] == [0, 0, 2 * 2] and dense[3] >= 2 and dense[4] == 0
