"""What is tried in a host with a pretended GPU, see `gpu_host`; the assertions about the answers are in
`test_gpu_host`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from lazydiff.evaluation.laboratory import GATES, SMALL

from .gpu_host import GPUHost, on_cpu
from .in_process import scene
from .tiny_models import Edit
from .tiny_vae import tiny_vae

OWN = "ancestral (as trained)"
SEARCH = {
    "words": "", "reference": "automatic", "object_threshold": 0.9, "background_threshold": 0.6, "mask_threshold": 0.2,
}  # fmt: skip

Answer = dict[str, Any] | None
CHECKS: dict[str, Callable[[GPUHost], Answer]] = {}


def check(function: Callable[[GPUHost], Answer]) -> Callable[[GPUHost], Answer]:
    CHECKS[function.__name__] = function
    return function


class Graph:
    """What most graphs begin with: the shipped model, a canvas with a hole, two prompts."""

    def __init__(self, host: GPUHost, model: Any = None):
        self.call = host.call
        loaded, self.clip, self.vae = host.call("LazyCheckpointLoader", SMALL.name)
        self.model = model or loaded
        picture, mask, self.caption = scene(3)
        self.image, self.mask = picture.movedim(1, -1), mask[:, 0]
        self.positive, self.negative = (host.call("CLIPTextEncode", self.clip, t)[0] for t in (self.caption, ""))
        self.context, self.latent = self.encode(self.image, self.mask)

    def encode(self, image: Tensor, mask: Tensor) -> tuple[Any, dict[str, Tensor]]:
        context, latent = self.call("LazyContextEncode", self.model, self.vae, image, mask, 0, 0)
        return context, latent

    def sample(
        self, steps: int = 3, sampler: str = "euler", cfg: float = 2.0, variations: int = 1, model: Any = None,
        context: Any = None, positive: Any = None, denoise: float = 1.0, **more: Any,
    ) -> dict[str, Tensor]:  # fmt: skip
        prompts = positive or self.positive, self.negative
        args = model or self.model, context or self.context, *prompts, 7, steps, cfg, sampler, "simple", denoise
        return self.call("LazySample", *args, variations, **more)[0]

    def stock_route(self, steps: int = 3, model: Any = None, latent: Any = None, positive: Any = None) -> Tensor:
        if latent is None:
            (latent,) = self.call("VAEEncode", self.vae, self.image)
            (latent,) = self.call("SetLatentNoiseMask", latent, self.mask)
        prompts = positive or self.positive, self.negative
        return self.call("KSampler", model or self.model, 1, steps, 2.0, "euler", "simple", *prompts, latent, 1.0)[0]


@functools.cache
def graph(host: GPUHost) -> Graph:
    return Graph(host)


def tensors(answer: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: on_cpu(x).clone() for name, x in answer.items()}


# Every node


@check
def lazy_sample(host: GPUHost) -> Answer:
    edit = graph(host)
    made = {sampler: edit.sample(6, sampler, variations=2)["samples"] for sampler in (OWN, "euler", "dpmpp_2m")}
    return tensors(made | {"decoded": host.call("VAEDecode", edit.vae, {"samples": made["euler"]})[0]})


@check
def sketch(host: GPUHost) -> Answer:
    edit = graph(host)
    return tensors({"sketch": edit.sample(4, denoise=0.5, sketch=1 - edit.image)["samples"]})


@check
def fitted_picture(host: GPUHost) -> Answer:
    """A picture of another size than the model's, given back at its own."""
    edit, image, mask = graph(host), torch.rand(1, 120, 160, 3, generator=torch.Generator().manual_seed(1)), None
    mask = torch.zeros(1, 120, 160)
    mask[:, 40:80, 60:100] = 1
    context, _ = edit.encode(image, mask)
    out = host.call("LazyVAEDecode", edit.sample(context=context), edit.vae, context, image, "lazy")[0]
    assert out.shape == image.shape
    return tensors({"fitted": out})


@check
def applied_context(host: GPUHost) -> Answer:
    edit = graph(host)
    (model,) = host.call("LazyContextApply", edit.model, edit.context)
    host.call("LazyContextInfo", edit.context)
    return tensors({"applied": edit.stock_route(model=model, latent=edit.latent)["samples"]})


@check
def stock_route(host: GPUHost) -> Answer:
    return tensors({"stock": graph(host).stock_route()["samples"]})


@check
def blended(host: GPUHost) -> Answer:
    edit = graph(host)
    source = 1 - edit.image
    return tensors({
        f"{gradients} {grow}": host.call("PoissonBlend", edit.image, source, edit.mask, gradients, grow)[0]
        for gradients, grow in (("source", 0), ("mixed", 6), ("source", -3))
    })  # fmt: skip


@check
def canvas(host: GPUHost) -> Answer:
    edit = graph(host)
    (canvas,) = host.call("LazyCanvas", edit.vae, edit.image)
    context, latent = host.call("LazyCanvasContext", edit.model, canvas, edit.mask, 3, 5)
    _, image = host.call("LazyCanvasEdit", canvas, edit.sample(context=context), context, "poisson")
    return tensors({"noise_mask": latent["noise_mask"], "canvas": image})


@check
def prompts_and_masks(host: GPUHost) -> Answer:
    """As many prompts as masks, filled one by one."""
    edit = graph(host)
    (positive,) = host.call("LazyPrompts", edit.clip, "a red tree\na boat on it")
    masks = torch.zeros(2, 96, 96)
    masks[0, 10:40, 10:40] = masks[1, 50:90, 30:90] = 1
    context, _ = edit.encode(edit.image, masks)
    return tensors({"prompts": edit.sample(context=context, positive=positive)["samples"]})


@check
def gates(host: GPUHost) -> Answer:
    edit = graph(host)
    calibrated, trained, fixed = (
        host.call("LazyGates", edit.model, *each)[0]
        for each in (("calibrate", 0.3, 0.5), (GATES.name, 0.0, 0.5), (GATES.name, 0.3, 0.5))
    )
    made = {"first": calibrated, "calibrated": calibrated, "trained": trained, "fixed": fixed}
    return tensors({name: edit.sample(10, OWN, model=model)["samples"] for name, model in made.items()})


@check
def attention_masks(host: GPUHost) -> Answer:
    edit = graph(host)
    args = edit.model, edit.clip, edit.vae, edit.image, edit.caption
    settings = SEARCH | {"seed": 1, "seeds": 1, "steps": 4, "strength": 0.5, "cfg": 2.0}
    masks = {str(on): host.call("AttentionMask", *args, **settings, evidence=on)[0] for on in (False, True)}
    model, positive = host.call("InstantMask", edit.model, edit.clip, edit.caption, **SEARCH)
    return tensors(masks | {"instant": edit.stock_route(model=model, positive=positive)["samples"]})


@check
def difference_masks(host: GPUHost) -> Answer:
    edit = graph(host)
    (target,) = host.call("CLIPTextEncode", edit.clip, "a blue fish")
    (latent,) = host.call("VAEEncode", edit.vae, edit.image)
    (model,) = host.call("RecordLatents", edit.model)
    sampled = edit.stock_route(model=model, latent=latent)
    settings = {
        "source": edit.positive, "target": target, "negative": edit.negative, "seed": 1, "steps": 4, "first": 2,
        "cfg": 2.0, "sampler": "euler", "scheduler": "simple", "denoise": 0.8,
    }  # fmt: skip
    texts = {"clip": edit.clip, "source_text": edit.caption, "target_text": "a blue fish"}
    return tensors({
        "plain": host.call("PromptDifferenceMask", edit.model, latent=latent, **settings)[0],
        "recorded": host.call("PromptDifferenceMask", model, latent=sampled, **settings)[0],
        "stabilised": host.call("PromptDifferenceMask", edit.model, latent=latent, **settings, **texts)[0],
    })  # fmt: skip


# Keys and values of stock models

STOCK = ("flux", "sd3", "qwen-image", "pixart-sigma")
PLACES: dict[str, dict[str, Any]] = {
    "device": {}, "host": {"place": "host"}, "fp8": {"precision": "fp8"},
    "fp8, host": {"place": "host", "precision": "fp8"},
}  # fmt: skip


def stock_edit(host: GPUHost, name: str) -> Edit:
    """An edit with a tiny model that is loaded to the device, and waits in main memory."""
    edit = Edit(host.pack, name)
    edit.model.load_device = host.mm.get_torch_device()
    return edit


@check
def kv_contexts(host: GPUHost) -> Answer:
    answer = {}
    for name in STOCK:
        edit = stock_edit(host, name)
        answer[name] = edit.sample(edit.attach(edit.context(anchors=2)))
        answer[f"{name}, automatic"] = edit.sample(edit.attach(edit.context()))
    return tensors(answer)


@check
def kv_places(host: GPUHost) -> Answer:
    answer, edit = {}, stock_edit(host, "flux")
    for place, settings in PLACES.items():
        answer[place] = edit.sample(edit.attach(edit.context(anchors=2, **settings)))
    lazy = edit.attach(edit.context(anchors=2, reuse=True))
    answer["first"], answer["again"] = edit.sample(lazy, seed=1), edit.sample(lazy)
    return tensors(answer)


@check
def kv_nodes(host: GPUHost) -> Answer:
    edit = stock_edit(host, "flux")
    lazy = host.call("LazyGates", edit.attach(edit.context(anchors=2)), "calibrate", 0.3, 0.5)[0]
    return tensors({"first": edit.sample(lazy, 8), "gated": edit.sample(lazy, 8)})


# Waits and copies


@check
def steps(host: GPUHost) -> Answer:
    edit = graph(host)
    answer = {sampler: host.per_step(lambda n, s=sampler: edit.sample(n, s)) for sampler in ("euler", OWN)}
    (calibrated,) = host.call("LazyGates", edit.model, "calibrate", 0.3, 0.5)
    return answer | {
        "stock route": host.per_step(edit.stock_route),
        "gates": host.per_step(lambda n: [edit.sample(n, model=calibrated) for _ in range(2)]),
    }


@check
def kv_steps(host: GPUHost) -> Answer:
    answer = {}
    for name in STOCK:
        edit = stock_edit(host, name)
        for title, model in {f"{name} alone": edit.model, name: edit.attach(edit.context(anchors=4))}.items():
            answer[title] = host.per_step(lambda n, edit=edit, model=model: edit.sample(model, steps=n), (5, 6))
    return answer


# Around a sampling


@check
def blends(host: GPUHost) -> Answer:
    """Poisson, grow and feather on the device."""
    edit, soften = graph(host), host.part("nodes.host.encode").soften
    return {
        "blend": host.seen(lambda: host.call("PoissonBlend", edit.image, 1 - edit.image, edit.mask, "source", 4)),
        "grow and feather": host.seen(lambda: soften(edit.mask[:, None], 4, 5)),
    }


def stock_chain(host: GPUHost, edits: int = 3) -> Answer:
    """Edits of one canvas with a VAE of Stable Diffusion's kind."""
    edit, vae, answer = stock_edit(host, "sd3"), tiny_vae(16), {}
    image = torch.rand(1, 256, 320, 3, generator=torch.Generator().manual_seed(2))
    (canvas,) = host.call("LazyCanvas", vae, image)
    for number in range(edits):
        mask = torch.zeros(1, 256, 320)
        mask[:, 40 + 50 * number :, 60:100][:, :40] = 1
        host.part("lazydiff.pipeline.canvas").masked_latent(canvas, mask[None])  # what models of ours are shown of it
        context, latent = host.call("LazyCanvasContext", edit.model, canvas, mask, 2, 2)
        noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(number))
        samples = {"samples": latent["samples"] + noise}
        held = {}

        def change(canvas: Any = canvas, samples: Any = samples, context: Any = context, held: Any = held) -> None:
            held["canvas"], held["image"] = host.call("LazyCanvasEdit", canvas, samples, context, "poisson")

        answer[str(number)] = host.seen(change)
        canvas = held["canvas"]
    decoded, _ = host.part("nodes.host.lazy_vae").decode_hole(vae, samples["samples"], context, image, False)
    shares = {"share": canvas.share}
    return answer | shares | tensors({"image": held["image"], "latent": canvas.latent, "decoded": decoded})


@check
def chain_on_a_canvas(host: GPUHost) -> Answer:
    return stock_chain(host)


@check
def lazy_chain_on_a_canvas(host: GPUHost) -> Answer:
    """The same where starting kernels costs nothing, so that this small a picture is decoded lazily too."""
    with patch.object(host.part("lazydiff.vae.lazy_vae"), "LAUNCH", 0):
        return stock_chain(host)


# Precision and memory


@check
def weight_types(host: GPUHost) -> Answer:
    """The shipped model as Load Diffusion Model and the command line's options load it."""
    answer, edit = {"fp32": graph(host).sample(3)["samples"]}, graph(host)
    for name in host.pack.host.UNETLoader.INPUT_TYPES()["required"]["weight_dtype"][0]:
        with host.started_with():
            (model,) = host.call("UNETLoader", SMALL.name, name)
            answer[name] = sampled(host, edit, model)
    for option in ("fp16_unet", "bf16_unet", "fp8_e4m3fn_unet", "fp8_e5m2_unet"):
        with host.started_with(**{option: True}):
            answer[option] = sampled(host, edit, host.call("LazyCheckpointLoader", SMALL.name)[0])
    return tensors(answer)


def sampled(host: GPUHost, edit: Graph, model: Any) -> Tensor:
    context, latent = host.call("LazyContextEncode", model, edit.vae, edit.image, edit.mask, 0, 0)
    edit.stock_route(1, model)
    return edit.sample(3, model=model, context=context)["samples"]


@check
def little_memory(host: GPUHost) -> Answer:
    """--lowvram and --novram: weights wait in main memory, and are brought for each layer."""
    answer = {"normal": graph(host).sample(3)["samples"]}
    for state in ("LOW_VRAM", "NO_VRAM"):
        with host.started_with(vram_state=getattr(host.mm.VRAMState, state), force_fp32=True):
            edit = Graph(host)
            answer[state] = edit.sample(3)["samples"]
            edit.stock_route(1)
            host.call("LazyVAEDecode", {"samples": answer[state]}, edit.vae, edit.context, edit.image, "lazy")
            stock = stock_edit(host, "flux")
            answer[f"{state}, KV"] = stock.sample(stock.attach(stock.context(anchors=2)))
            stock_chain(host, edits=1)
    return tensors(answer)


@check
def memory_for_keys(host: GPUHost) -> Answer:
    """What the host makes free for a sampling, with a KV context and without, and what the context keeps."""
    edit, asked, free = stock_edit(host, "flux"), [], host.mm.free_memory

    def listening(needed: float, *args: Any, **kwargs: Any) -> Any:
        asked.append(needed)
        return free(needed, *args, **kwargs)

    context, answer = edit.context(anchors=2, reuse=True), {}
    patches = {"free_memory": listening, "minimum_inference_memory": lambda: 0, "extra_reserved_memory": lambda: 0}
    with patch.multiple(host.mm, **patches), patch.object(host.gpu, "free_memory", 1 << 20):
        for name, model in {"alone": edit.model, "with keys": edit.attach(context)}.items():
            host.mm.unload_all_models()
            asked.clear()
            edit.sample(model)
            answer[name] = max(asked)
    return answer | {"kept": edit.cache(context).bytes}
