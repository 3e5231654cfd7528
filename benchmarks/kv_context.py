"""Time and memory of a KV context on stock transformers of the host, against the same transformers on all tokens.

    python -m benchmarks.kv_context --output DIR [--device cpu] [--quick]

Needs a ComfyUI checkout (COMFYUI_PATH, or ~/comfy/ComfyUI): its networks, with random weights, are sampled by its own
sampler through the pack's `KVSampling`, on 4096 image tokens (1024 px) with a hole of 10 %. Prints tables and writes
`kv_context.md`, `.png` and `.json`. On a CPU, width and depth are reduced as the tables say, and times are processor
time of one thread.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lazydiff.cache.kv_cache import MEGABYTE, KVSettings, dilate
from lazydiff.cache.recording import automatic_levels

from .comfyui import accepted, load_pack
from .harness import Harness, arguments, tensor_bytes
from .kv_report import Limit, Memory, Results, Sampling, Step
from .kv_shapes import SHAPES, Shape, macs, setting

GRID = 64  # tokens per side of the canvas
PERCENT = 10  # of them in the hole
# What the policy of automatic anchors decides on depends on how a trained model's keys change, which random weights say
# nothing about. This is what it takes on the trained baseline.
ANCHORS = 4


class Stopwatch:
    """Reads the seconds that model calls have taken; its sampler makes one call and no step."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.seconds = clock, 0.0

    def __call__(self) -> float:
        return self.seconds

    def sampler(self, model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **unused: Any) -> Tensor:
        start = self.clock()
        x = model(x, sigmas[:1].expand(len(x)), **extra_args)
        self.seconds += self.clock() - start
        return x


def hole_mask(grid: int, percent: float) -> Tensor:
    """A mask [grid, grid] of tokens, as near to a square in the middle as that share of them can be."""
    count = round(grid**2 * percent / 100)
    side = math.isqrt(count)
    corner = (grid - side) // 2
    mask = torch.zeros(grid, grid)
    for i in range(count):
        mask[corner + i // side, corner + i % side] = 1
    return mask


def random_model(shape: Shape, sizes: Mapping[str, Any], device: str) -> Any:
    """A MODEL of the host's; on an accelerator in half precision."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    config = getattr(comfy.supported_models, shape.kind)(accepted(shape.kind, sizes))
    config.set_inference_dtype(torch.float32 if device == "cpu" else torch.bfloat16, None)
    model = config.get_model({}, "", device=torch.device(device)).to(device).eval()
    for tensor in model.diffusion_model.state_dict().values():
        tensor.normal_(std=0.02)  # the host's layers start uninitialised, perhaps as numbers that a CPU is slow with
    return ModelPatcher(model, torch.device(device), torch.device("cpu"))


class Bench:
    """A shape at some sizes, a canvas with a hole, and what is measured of them; kv: the pack's module of samplings."""

    def __init__(self, kv: Any, shape: Shape, sizes: Mapping[str, Any], grid: int, harness: Harness):
        self.kv, self.shape, self.sizes, self.image, self.harness = kv, shape, sizes, grid**2, harness
        self.model = random_model(shape, sizes, harness.device)
        self.stopwatch = Stopwatch(harness.clock)
        hole = hole_mask(grid, PERCENT)[None, None]
        self.mask = hole.repeat_interleave(2, -1).repeat_interleave(2, -2)  # latent cells
        self.pixels = self.mask.repeat_interleave(8, -1).repeat_interleave(8, -2) > 0
        self.latent = torch.randn(1, self.model.model.latent_format.latent_channels, 2 * grid, 2 * grid)
        pooled = torch.randn(1, shape.pooled) if shape.pooled else None
        self.prompt = [[torch.randn(1, shape.text, shape.text_width), {"pooled_output": pooled}]]

    def context(self, **settings: Any) -> Any:
        """A context whose samplings go on from what those before them have left, anchors too."""
        settings["reuse"] = True
        return self.kv.kv_context(self.model, self.latent, self.pixels, KVSettings(**settings), None)

    def cache_of(self, context: Any) -> Any:
        """What samplings on a context have kept, by the pack's own module, which goes by another name in the host."""
        return importlib.import_module(type(context).__module__).cache_of(context)

    def lazy(self, context: Any) -> Any:
        return self.kv.KVSampling(self.model, context).attach(self.model)

    def sample(self, model: Any, steps: int, callback: Callable[..., None] | None = None) -> None:
        from comfy.samplers import sampler_object

        self.run(model, sampler_object("euler"), self.sigmas(steps), callback)

    def call(self, model: Any) -> None:
        """One call of the model from within a sampling, which the stopwatch sees. The sampling claims to have two
        steps: where each step is an anchor, nothing is kept."""
        from comfy.samplers import KSAMPLER

        self.run(model, KSAMPLER(self.stopwatch.sampler), self.sigmas(20)[[10, -2, -1]])

    def sigmas(self, steps: int) -> Tensor:
        from comfy.samplers import calculate_sigmas

        return calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", steps)

    def run(self, model: Any, sampler: Any, sigmas: Tensor, callback: Callable[..., None] | None = None) -> None:
        from comfy.sample import sample_custom

        sample_custom(
            model, torch.randn_like(self.latent), 1.0, sampler, sigmas, self.prompt, self.prompt, self.latent,
            self.mask, callback, disable_pbar=True, seed=0,
        )  # fmt: skip

    def steps(self) -> list[Step]:
        kept = (False, True) if self.shape.joint else (False,)
        settings = [{"ring": ring, "text": text} for text in kept for ring in (0, KVSettings().ring)]
        # The turn that warms up makes the anchor.
        models = [self.lazy(self.context(anchors=1, **each)) for each in settings]
        calls = [partial(self.call, model) for model in (self.model, *models)]
        dense, *replayed = self.harness.medians(calls, self.stopwatch)
        rows = []
        for each, milliseconds in zip(settings, replayed, strict=True):
            (tokens, limit), ratio = self.limit(**each), dense / milliseconds
            times = dense, milliseconds
            rows.append(Step(self.shape.name, *each.values(), tokens, *times, ratio, limit, ratio / limit))
        return rows

    def limit(self, ring: int, text: bool) -> tuple[int, float]:
        """Tokens that a replayed call computes, and how many times less work it is than a dense one."""
        image, words = dilate(self.context().hole, ring).count, self.shape.text if self.shape.joint else 0
        computed_words = min(words, 1) if text else words
        work = partial(macs, self.shape, self.sizes, self.image)
        return image + computed_words, work(self.image, words) / work(image, computed_words)

    @property
    def settings(self) -> list[tuple[int, dict[str, Any]]]:
        """Steps of the samplings that are measured, and the settings of their context that are not the default's."""
        others: list[dict[str, Any]] = [{"text": True}, {"anchors": ANCHORS}] if self.shape.joint else []
        return [*((steps, {}) for steps in self.shape.sampled), *((self.shape.sampled[0], each) for each in others)]

    def samplings(self) -> list[Sampling]:
        """Whole samplings, one of each."""

        def seconds(model: Any, steps: int) -> float:
            start = self.stopwatch.clock()
            self.sample(model, steps)
            return self.stopwatch.clock() - start

        dense = {steps: seconds(self.model, steps) for steps in self.shape.sampled}
        rows = []
        for steps, settings in self.settings:
            lazy = self.lazy(self.context(**settings))
            rows.append(self.sampling(steps, settings, dense[steps], seconds(lazy, steps), seconds(lazy, steps)))
        return rows

    def samplings_of_calls(self, calls: Sequence[Step]) -> list[Sampling]:
        """The same, put together from the times of calls."""

        def first_call(settings: Mapping[str, Any]) -> None:
            self.call(self.lazy(self.context(**{"levels": 0 if "anchors" in settings else 1, **settings})))

        ring = {call.text_kept: call for call in calls if call.ring == KVSettings().ring}
        firsts = self.harness.medians([partial(first_call, each) for _, each in self.settings], self.stopwatch)
        rows = []
        for (steps, settings), milliseconds in zip(self.settings, firsts, strict=True):
            call = ring[settings.get("text", False)]
            dense, replayed, first = call.dense_ms / 1000, call.replayed_ms / 1000, milliseconds / 1000
            if "anchors" in settings:
                whole = ANCHORS * first + (steps - ANCHORS) * replayed
            else:
                whole = automatic_levels(steps) * (first - replayed) + steps * replayed
            rows.append(self.sampling(steps, settings, steps * dense, whole, steps * replayed))
        return rows

    def sampling(
        self, steps: int, settings: Mapping[str, Any], dense: float, first: float, following: float
    ) -> Sampling:
        how = steps, "anchors" if "anchors" in settings else "recorded", settings.get("text", False)
        return Sampling(self.shape.name, *how, dense, first, dense / first, following, dense / following)

    def memory(self) -> list[Memory]:
        rows = []
        for precision in ("model", "fp8"):
            context = self.context(anchors=1, precision=precision)
            self.call(self.lazy(context))
            with_anchor = tensor_bytes()
            self.cache_of(context).clear()
            measured, formula = with_anchor - tensor_bytes(), self.kv.anchor_bytes(self.model, context)
            rows.append(Memory(self.shape.name, precision, measured / MEGABYTE, formula / MEGABYTE, measured / formula))
        return rows

    def limited(self) -> Limit:
        """A sampling every other step of which is an anchor, under a limit that holds two and a half of them."""
        limit = math.ceil(2.5 * self.kv.anchor_bytes(self.model, self.context()) / MEGABYTE)
        context = self.context(anchors=ANCHORS, limit=limit)
        cache, sizes = self.cache_of(context), []
        self.sample(self.lazy(context), 2 * ANCHORS, lambda *step: sizes.append(cache.bytes))
        return Limit(self.shape.name, limit, max(sizes) / MEGABYTE, ANCHORS, cache.count)


def measure(kv: Any, shapes: Sequence[Shape], grid: int, harness: Harness) -> Results:
    """Everything of each shape in turn; kv: the pack's module of samplings on KV contexts."""
    composed = "; put together from the times of calls" if harness.quick else ""
    results = Results([f"samplings with anchors: {ANCHORS} of them, as are taken of a trained model{composed}"])
    for shape in shapes:
        reduced = {} if not harness.on_cpu else shape.quick if harness.quick else shape.reduced
        sizes = {**shape.sizes, **reduced}
        results.notes.append(setting(shape, sizes))
        bench = Bench(kv, shape, sizes, grid, harness)
        steps = bench.steps()
        results.steps += steps
        if shape.sampled:
            results.samplings += bench.samplings_of_calls(steps) if harness.quick else bench.samplings()
        if shape.limited:
            results.limits.append(bench.limited())
        results.memory += bench.memory()
    return results


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "fewer blocks, samplings composed of calls", repeat=5)
    harness = Harness.of(parser.parse_args(argv))
    torch.manual_seed(0)
    kv = importlib.import_module(load_pack(harness.on_cpu) + "nodes.host.kv_sampling")
    results = measure(kv, SHAPES, GRID, harness)
    results.notes[:0] = [
        f"{harness.conditions}, {'fp32' if harness.on_cpu else 'bf16'}, torch {torch.__version__}; random weights",
        f"{GRID**2} image tokens, {int(hole_mask(GRID, PERCENT).sum())} of them in the hole; embeddings and output, of "
        "all tokens and once per call, weigh the more the fewer the blocks; variations reuse what the first edit kept",
    ]
    print(results.markdown)
    harness.write("kv_context", results.figures, results.plot, notes=results.notes, **results.tables)
    (harness.output / "kv_context.md").write_text(results.markdown, "utf-8")


if __name__ == "__main__":
    main()
