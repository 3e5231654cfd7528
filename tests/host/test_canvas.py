"""Chained edits on a canvas, and the lazy decode, through the real nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from .in_process import Pack, scene
from .running_server import TABLE, Server
from .templates import Prompt, first_edit, workflow
from .test_server import pixels
from .tiny_models import TinyVAE, prompt, tiny
from .tiny_vae import tiny_vae

pytestmark = pytest.mark.host


class Chain:
    """A canvas, a model and prompts."""

    def __init__(self, pack: Pack, model: Any, vae: Any, image: Tensor, positive: Any, negative: Any):
        self.pack, self.call, self.model, self.vae = pack, pack.call, model, vae
        self.image, self.positive, self.negative = image, positive, negative
        (self.canvas,) = self.call("LazyCanvas", vae, image)

    def sample(self, context: Any, seed: int = 1, variations: int = 1) -> dict[str, Tensor]:
        args = context, self.positive, self.negative, seed, 2, 1.0, "euler", "simple", 1.0, variations
        return self.call("LazySample", self.model, *args)[0]

    def edit(self, canvas: Any, mask: Tensor, seed: int = 1, blend: str = "poisson", variations: int = 1) -> Any:
        context, latent = self.call("LazyCanvasContext", self.model, canvas, mask, 0, 0)
        assert torch.equal(latent["samples"][:1], canvas.latent[:1].reshape_as(latent["samples"][:1]))
        return self.call("LazyCanvasEdit", canvas, self.sample(context, seed, variations), context, blend)


@pytest.fixture
def ours(pack: Pack) -> Chain:
    """The model that ships, with its VAE, which is no lazy one."""
    model, clip, vae = pack.call("LazyCheckpointLoader", "lazydiffusion-small.safetensors")
    image, _, caption = scene(1)
    positive, negative = (pack.call("CLIPTextEncode", clip, text)[0] for text in (caption, ""))
    return Chain(pack, model, vae, image.movedim(1, -1), positive, negative)


@pytest.fixture
def stock(pack: Pack) -> Chain:
    """A stock transformer with Stable Diffusion's kind of VAE."""
    return Chain(pack, tiny("sd3"), tiny_vae(16), torch.rand(1, 256, 320, 3), prompt("sd3", 9, 1), prompt("sd3", 5, 2))


@pytest.fixture(params=["ours", "stock"])
def chain(request: pytest.FixtureRequest) -> Chain:
    return request.getfixturevalue(request.param)


def hole(chain: Chain, top: int, left: int, side: int = 24) -> Tensor:
    mask = torch.zeros(chain.image.shape[:3])
    mask[:, top : top + side, left : left + side] = 1
    return mask


def cells(mask: Tensor, like: Tensor) -> Tensor:
    return (torch.nn.functional.max_pool2d(mask[:, None], 8) > 0).expand_as(like)


def test_twenty_edits(chain: Chain) -> None:
    first = canvas = chain.canvas
    height, width = chain.image.shape[1:3]
    touched = torch.zeros_like(hole(chain, 0, 0))
    for number in range(20):
        mask = hole(chain, 37 * number % (height - 40), 53 * number % (width - 40))
        canvas, image = chain.edit(canvas, mask, number)
        touched = torch.maximum(touched, mask)
        if canvas.vae.lazy:
            assert canvas.planned is not None and 0 < canvas.share < 0.6
    outside = touched == 0
    assert outside.any() and torch.equal(image[outside], chain.image[outside])
    assert not torch.equal(image[~outside], chain.image[~outside])
    still = ~cells(touched, first.latent)
    assert still.any() and torch.equal(canvas.latent[still], first.latent[still])


def test_first_edit_is_the_one_without_a_canvas(ours: Chain) -> None:
    """Lazy Context Encode, VAE Decode and Poisson Blend: the same picture, bit for bit."""
    mask = hole(ours, 30, 40, 32)
    _, image = ours.edit(ours.canvas, mask)
    context, _ = ours.call("LazyContextEncode", ours.model, ours.vae, ours.image, mask, 0, 0)
    (pixels,) = ours.call("VAEDecode", ours.vae, ours.sample(context))
    assert torch.equal(image, ours.call("PoissonBlend", ours.image, pixels, mask, "source", 0)[0])


def test_any_sampler_of_the_host(chain: Chain) -> None:
    mask = hole(chain, 30, 40, 32)
    context, latent = chain.call("LazyCanvasContext", chain.model, chain.canvas, mask, 0, 0)
    (model,) = chain.call("LazyContextApply", chain.model, context)
    args = 1, 2, 1.0, "euler", "simple", chain.positive, chain.negative, latent, 1.0
    (samples,) = chain.call("KSampler", model, *args)
    canvas, image = chain.call("LazyCanvasEdit", chain.canvas, samples, context, "paste")
    inside = cells(mask, canvas.latent)
    assert torch.equal(canvas.latent[inside], samples["samples"][inside])
    assert torch.equal(image[mask == 0], chain.image[mask == 0])


def test_variations_are_canvases_and_holes_are_filled_on_one(chain: Chain) -> None:
    canvas, image = chain.edit(chain.canvas, hole(chain, 10, 10), variations=3)
    assert len(canvas.image) == len(image) == 3 and not torch.equal(image[0], image[1])
    canvas, image = chain.edit(canvas, hole(chain, 50, 60), 2)
    assert len(image) == 3

    masks = torch.cat([hole(chain, 10, 10), hole(chain, 56, 40), hole(chain, 60, 50)])  # the last two overlap
    canvas, image = chain.edit(chain.canvas, masks)
    changed = (image[0] != chain.image[0]).any(-1)
    assert len(image) == 1 and not changed[masks.amax(0) == 0].any()
    assert changed[masks.amax(0) > 0].float().mean() > 0.9


def test_grow_and_feather_are_part_of_the_hole(chain: Chain) -> None:
    mask = hole(chain, 40, 40, 16)
    context, _ = chain.call("LazyCanvasContext", chain.model, chain.canvas, mask, 4, 4)
    _, image = chain.call("LazyCanvasEdit", chain.canvas, chain.sample(context), context, "poisson")
    changed = (image != chain.image).any(-1)[0]
    assert changed[35:61, 45:51].any(1).all() and not changed[:33].any() and not changed[:, 63:].any()


def test_canvas_keeps_its_cost_and_its_memory(stock: Chain) -> None:
    canvas, shares, sizes = stock.canvas, [], []
    for number in range(6):
        canvas, _ = stock.edit(canvas, hole(stock, 100, 120), number)
        shares.append(canvas.share)
        passes = (*canvas.encoded, *canvas.decoded)
        sizes.append(sum(x.numel() for each in passes for x in (each.x, each.state.output, *each.state.keys)))
    assert len(set(shares)) == 1 and shares[0] < 0.6 and len(set(sizes)) == 1
    held = [each for each in canvas if isinstance(each, Tensor)]
    assert sum(x.numel() for x in held) == canvas.image.numel() + canvas.latent.numel()


def test_a_chain_gives_the_same_pictures_whatever_ran_before_it(stock: Chain) -> None:
    """Bit by bit, though its decodes are lazy."""

    def chain() -> list[Tensor]:
        canvas, image = stock.edit(stock.canvas, hole(stock, 100, 120), 1)
        return [image, stock.edit(canvas, hole(stock, 40, 200), 2)[1]]

    first = chain()
    stock.edit(stock.canvas, hole(stock, 60, 60), 3)
    assert all(torch.equal(one, other) for one, other in zip(chain(), first, strict=True))


def test_video_vaes_and_unknown_ones_decode_in_full(pack: Pack) -> None:
    model, image = tiny("qwen-image"), torch.rand(1, 256, 320, 3)
    chain = Chain(pack, model, TinyVAE(16, frames=True), image, prompt("qwen-image", 9, 1), prompt("qwen-image", 5, 2))
    mask = hole(chain, 40, 40)
    canvas, image = chain.edit(chain.canvas, mask)
    again, later = chain.edit(canvas, hole(chain, 140, 240))
    assert canvas.latent.ndim == 5 and canvas.share == 1
    assert torch.equal(image[mask == 0], chain.image[mask == 0]) and not torch.equal(later, image)


# Lazy VAE Decode


def decode(chain: Chain, latent: Tensor, hole: Any, mode: str = "lazy") -> Tensor:
    return chain.call("LazyVAEDecode", {"samples": latent}, chain.vae, hole, chain.image, mode)[0]


@pytest.fixture
def said(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(pack.part("nodes.vae"), "show", lines.append)
    return lines


def test_lazy_decode_from_what_is_remembered(stock: Chain, said: list[str]) -> None:
    mask = hole(stock, 100, 120)
    context, latent = stock.call("LazyContextEncode", stock.model, stock.vae, stock.image, mask, 0, 0)
    stock.pack.part("nodes.host.lazy_vae").CANVASES.clear()
    one, other = (stock.sample(context, seed)["samples"] for seed in (1, 2))
    first, second = decode(stock, one, context), decode(stock, other, context)
    exact, by_mask = decode(stock, other, context, "exact (full)"), decode(stock, other, mask)
    told = ["lazy decode", "lazy decode", "full decode, as chosen", "full decode"]
    assert [line.split(":")[0] for line in said] == told and torch.equal(exact, by_mask)
    assert 0 < int(said[1].split("%")[0].split()[-1]) < 60
    stock.pack.part("nodes.host.lazy_vae").CANVASES.clear()
    assert torch.equal(decode(stock, other, context), second)  # whatever was decoded before
    near = torch.nn.functional.max_pool2d(mask[:, None], 3, 1, 1)
    near = torch.nn.functional.interpolate(torch.nn.functional.max_pool2d(near, 8), scale_factor=8)[:, 0] > 0
    assert torch.equal(second[~near], stock.image[~near])
    (own,) = stock.call("VAEDecode", stock.vae, {"samples": other})
    # The host may write attention another way; then sums are in another order.
    torch.testing.assert_close(exact[near], own[near], atol=1e-5, rtol=0)
    # Random weights, with which statistics matter far more than with trained ones.
    error, change = ((second - each)[near].abs().mean() for each in (exact, first))
    assert error < 0.5 * change, (error, change)


def test_too_large_a_change_is_decoded_in_full(stock: Chain, said: list[str]) -> None:
    everywhere = torch.ones_like(hole(stock, 0, 0))
    context, _ = stock.call("LazyContextEncode", stock.model, stock.vae, stock.image, everywhere, 0, 0)
    latent = torch.randn(stock.canvas.latent.shape)
    result = decode(stock, latent, context)
    assert said[0].startswith("full decode: what has changed")
    assert torch.equal(result, decode(stock, latent, context, "exact (full)"))


def test_a_vae_that_is_not_known_passes_through(ours: Chain, said: list[str]) -> None:
    mask = hole(ours, 0, 0, 96)
    latent = ours.canvas.latent + torch.randn_like(ours.canvas.latent)
    result = decode(ours, latent, mask)
    assert torch.equal(result, ours.call("VAEDecode", ours.vae, {"samples": latent})[0])
    assert said == ["full decode: this VAE cannot be run in part"]


def test_out_of_memory_the_hosts_own_decode_goes_on(stock: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    part = stock.pack.part("nodes.host.lazy_vae")

    def full(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(part.HostLazyVAE, "run", full)
    latent, everywhere = torch.randn_like(stock.canvas.latent), torch.ones_like(hole(stock, 0, 0))
    assert torch.equal(decode(stock, latent, everywhere), stock.call("VAEDecode", stock.vae, {"samples": latent})[0])


def test_memory_goes_with_its_vae(pack: Pack) -> None:
    import gc

    memories = pack.part("nodes.host.lazy_vae").NEWEST
    gc.collect()
    before, vae = len(memories), tiny_vae()
    pack.call("LazyCanvas", vae, torch.rand(1, 64, 64, 3))
    assert len(memories) == before + 1
    del vae
    gc.collect()
    assert len(memories) <= before


# In a running server


def twenty_edits() -> Prompt:
    """The template's first edit over and over, each elsewhere."""
    template = workflow("09-chain-on-a-canvas")
    graph = {number: template[number] for number in ("1", "2", "3", "4", "99")}
    graph["1"]["inputs"]["checkpoint"], graph["2"]["inputs"]["image"] = "lazydiffusion-small.safetensors", TABLE
    for name, value, width, height in (("10", 0.0, 96, 96), ("11", 1.0, 30, 32)):
        inputs = {"value": value, "width": width, "height": height}
        graph[name] = {"class_type": "SolidMask", "inputs": inputs}
    canvas = ["3", 0]
    for i in range(20):
        names = {str(300 + j): str(1000 + 10 * i + j) for j in range(2, 7)}
        place = {"destination": ["10", 0], "source": ["11", 0], "x": 29 * i % 50, "y": 23 * i % 60, "operation": "add"}
        template["302"] = {"class_type": "MaskComposite", "inputs": place}
        for old, new in names.items():
            inputs = {
                key: [names.get(at[0], at[0]), at[1]] if isinstance(at, list) else at
                for key, at in template[old]["inputs"].items()
            }
            graph[new] = {"class_type": template[old]["class_type"], "inputs": inputs}
        context, sampler, edit = (graph[names[str(number)]]["inputs"] for number in (304, 305, 306))
        sampler.update(steps=2, seed=i)
        context["canvas"] = edit["canvas"] = canvas
        canvas = [names["306"], 0]
    graph["99"]["inputs"]["images"] = [canvas[0], 1]
    return graph


def test_twenty_edits_in_one_graph(server: Server) -> None:
    graph = twenty_edits()
    first = server.run(graph)
    assert first.end == "execution_success", first.error
    kinds = [graph[number]["class_type"] for number in first.executed]
    assert kinds.count("LazyCanvas") == 1 and kinds.count("LazyCanvasEdit") == 20
    (path,) = server.pictures(first)
    table = Image.open(server.folder / "input" / TABLE)
    canvas, outside = np.asarray(table.convert("RGB")), np.ones((96, 96), bool)
    for i in range(20):
        outside[23 * i % 60 :, 29 * i % 50 :][:32, :30] = False
    assert outside.any() and (pixels(path)[outside] == canvas[outside]).all()
    assert (pixels(path)[~outside] != canvas[~outside]).any()

    graph["1195"]["inputs"]["seed"] += 1
    again = [graph[number]["class_type"] for number in server.run(graph).executed]
    assert sorted(again) == ["LazyCanvasEdit", "LazySample", "SaveImage"]


def test_a_decode_says_what_it_did(server: Server) -> None:
    graph = first_edit()
    inputs = graph["8"]["inputs"]
    execution = server.run(graph)
    assert execution.end == "execution_success", execution.error
    inputs["hole"] = ["2", 1]  # the mask instead of the context
    assert server.run(graph).end == "execution_success"
    plain_graph = first_edit()
    plain_graph["8"] = {"class_type": "VAEDecode", "inputs": {name: inputs[name] for name in ("samples", "vae")}}
    (plain,), (lazy,) = (server.pictures(each) for each in (server.run(plain_graph), execution))
    assert (pixels(plain) == pixels(lazy)).all()


# Bad graphs, refused in words


def test_what_does_not_fit_is_refused_in_words(stock: Chain, ours: Chain) -> None:
    with pytest.raises(ValueError, match="not numbers"):
        stock.call("LazyCanvas", ours.vae, torch.full((1, 64, 96, 3), float("nan")))
    with pytest.raises(ValueError, match="the mask is 64×64 and the image 320×256"):
        stock.edit(stock.canvas, torch.ones(1, 64, 64))
    with pytest.raises(ValueError, match="latents of 16 channels.*connect the VAE that belongs to the model"):
        ours.edit(stock.canvas, hole(stock, 0, 0))
    mask = hole(stock, 0, 0)
    context, latent = stock.call("LazyCanvasContext", stock.model, stock.canvas, mask, 0, 0)
    other = {"samples": latent["samples"][..., :-2]}
    with pytest.raises(ValueError, match="sample on this canvas"):
        stock.call("LazyCanvasEdit", stock.canvas, other, context, "poisson")
    with pytest.raises(ValueError, match="of different size: the latents 320×256, the canvas 320×256, the mask 64×64"):
        decode(stock, latent["samples"], torch.ones(1, 64, 64))
