"""Time and memory of a KV context on Stable Diffusion's UNets of the host, against the same networks on the whole map.

    python -m benchmarks.unet --output DIR [--device cpu] [--quick]

Needs a ComfyUI checkout (COMFYUI_PATH, or ~/comfy/ComfyUI): its networks, with random weights and their true blocks,
are sampled by its own sampler with a hole of 10 %, one compact or twelve specks. Prints tables and writes `unet.md` and
`unet.json`. On a CPU, width is reduced as the tables say, and times are processor time of one thread.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lazydiff.cache.kv_cache import MEGABYTE, KVSettings
from lazydiff.cache.recording import automatic_levels

from .comfyui import load_pack
from .harness import Harness, arguments, tensor_bytes
from .kv_context import ANCHORS, PERCENT, Bench, Stopwatch, hole_mask, random_model
from .kv_report import table
from .kv_shapes import Shape

STEPS = 20
# An edit by two prompts. FISEdit's mask: both take 10 steps of 50. DiffEdit's: both answer to 10 noises.
STEPS_BY_WORDS, CALLS_FOR_A_MASK = 50, 2 * 10
SPECKS = (3, 4)  # rows and columns of them
SIZES: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "use_temporal_attention": False,
}  # fmt: skip
SD15 = Shape(
    "SD 1.5", "SD15",
    {
        **SIZES, "model_channels": 320, "context_dim": 768, "adm_in_channels": None, "num_heads": 8,
        "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "use_linear_in_transformer": False,
    },
    {"model_channels": 128}, {"model_channels": 64}, text=77, text_width=768,
)  # fmt: skip
SDXL = Shape(
    "SDXL", "SDXL",
    {
        **SIZES, "model_channels": 320, "context_dim": 2048, "num_classes": "sequential", "adm_in_channels": 2816,
        "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "use_linear_in_transformer": True, "num_head_channels": 64,
    },
    {"model_channels": 96}, {"model_channels": 64}, text=77, text_width=2048, pooled=1280,
)  # fmt: skip


class Case(NamedTuple):
    shape: Shape
    side: int  # px
    name: str  # of its figures


MODES: dict[str, dict[str, Any]] = {"recorded": {}, f"{ANCHORS} anchors": {"anchors": ANCHORS}}
CASES = (Case(SDXL, 1024, "sdxl"), Case(SD15, 512, "sd15"), Case(SD15, 768, "sd15_768"))


class Row(NamedTuple):
    """One call of the model."""

    network: str
    hole: str
    ring: int
    tiles: int
    share: float  # of the map that is in tiles
    dense_ms: float
    lazy_ms: float
    ratio: float
    limit: float  # by multiply-adds
    reached: float  # share of the limit


class Whole(NamedTuple):
    """A whole sampling of STEPS, with its recordings or with ANCHORS of its steps computing everything."""

    network: str
    mode: str
    dense_s: float
    first_s: float
    first_ratio: float
    next_s: float
    next_ratio: float


class ByWords(NamedTuple):
    """An edit of STEPS_BY_WORDS steps whose mask comes from two prompts, put together from a sampling of STEPS."""

    network: str
    diffedit_s: float  # every step whole, and from noise: without DiffEdit's inversion, up to as many steps again
    fisedit_s: float
    ratio: float

    @classmethod
    def of(cls, whole: Whole) -> ByWords:
        dense, lazy = whole.dense_s / STEPS, whole.next_s / STEPS
        mask = CALLS_FOR_A_MASK * dense
        diffedit = mask + STEPS_BY_WORDS * dense
        fisedit = mask + whole.first_s + (STEPS_BY_WORDS - STEPS) * lazy
        return cls(whole.network, diffedit, fisedit, diffedit / fisedit)


class Kept(NamedTuple):
    """One anchor."""

    network: str
    hole: str
    precision: str
    measured_mb: float
    formula_mb: float
    over_formula: float


HEADS = {
    Row: {
        "one call": "{}", "hole": "{}", "ring": "{}", "tiles": "{}", "of the map": "{:.1%}", "dense, ms": "{:.0f}",
        "lazy, ms": "{:.0f}", "faster": "{:.2f}×", "by multiply-adds": "{:.2f}×", "share reached": "{:.0%}",
    },
    Whole: {
        "whole sampling": "{}", "context": "{}", "dense, s": "{:.1f}", "first edit, s": "{:.1f}",
        "first edit": "{:.2f}×", "next variation, s": "{:.1f}", "next variation": "{:.2f}×",
    },
    ByWords: {
        "edit by two prompts": "{}", "DiffEdit's mask, dense, s": "{:.1f}", "FISEdit's mask, lazy, s": "{:.1f}",
        "faster": "{:.2f}×",
    },
    Kept: {
        "one anchor": "{}", "hole": "{}", "precision": "{}", "measured, MB": "{:.1f}", "by the formula, MB": "{:.1f}",
        "measured / formula": "{:.4f}",
    },
}  # fmt: skip


def specks(side: int) -> Tensor:
    """A mask [side, side] of twelve squares that make PERCENT of it, spread out, not on the tiles' grid."""
    mask, width = torch.zeros(side, side), math.sqrt(side**2 * PERCENT / 100 / math.prod(SPECKS))
    for i in range(SPECKS[0]):
        for j in range(SPECKS[1]):
            top = round(side * (i + 0.5) / SPECKS[0] - width / 2) + (j * 5) % 7 - 3
            left = round(side * (j + 0.5) / SPECKS[1] - width / 2) + (i * 3) % 5 - 2
            mask[top : top + round(width), left : left + round(width)] = 1
    return mask


class UNetBench(Bench):
    """A UNet at some sizes and what is measured of it."""

    def __init__(self, load: Any, case: Case, harness: Harness):
        reduced = {} if not harness.on_cpu else case.shape.quick if harness.quick else case.shape.reduced
        self.kv, self.contexts, self.unet = (
            load(f"nodes.host.{name}") for name in ("kv_sampling", "contexts", "unet_sampling")
        )
        self.shape, self.harness = case.shape, harness
        self.sizes: Mapping[str, Any] = {**case.shape.sizes, **reduced}
        self.name = f"{case.shape.name}, {case.side} px"
        side = case.side // 8
        self.holes = {"compact": hole_mask(side, PERCENT), "specks": specks(side)}
        self.model = random_model(self.shape, self.sizes, harness.device)
        self.stopwatch = Stopwatch(harness.clock)
        self.latent = torch.randn(1, 4, side, side)
        pooled = torch.randn(1, self.shape.pooled) if self.shape.pooled else None
        self.prompt = [[torch.randn(1, self.shape.text, self.shape.text_width), {"pooled_output": pooled}]]
        self.use("compact")

    def use(self, hole: str) -> None:
        self.hole, self.mask = hole, self.holes[hole][None, None]
        self.pixels = self.mask.repeat_interleave(8, -1).repeat_interleave(8, -2) > 0

    def lazy(self, context: Any) -> Any:
        return self.contexts.attach(self.model, context)

    def rows(self) -> list[Row]:
        """The turn that warms up makes the anchor."""
        settings, models = [("compact", 0), ("compact", KVSettings().ring), ("specks", 0)], [self.model]
        layouts = []
        for hole, ring in settings:
            self.use(hole)
            context = self.context(anchors=1, ring=ring)
            layouts.append(self.unet.UNetLayout(self.model.model.diffusion_model, context, torch.device("cpu")).unet)
            models.append(self.lazy(context))
        self.use("compact")
        calls = []
        for model, (hole, _) in zip(models, [("compact", 0), *settings], strict=True):
            calls.append(partial(self.call_on, hole, model))
        dense, *lazy = self.harness.medians(calls, self.stopwatch)
        work, *few = [self.work(call) for call in calls]
        rows = []
        for (hole, ring), layout, milliseconds, macs in zip(settings, layouts, lazy, few, strict=True):
            ratio, limit, tiles = dense / milliseconds, work / macs, layout.levels[0].count
            times = dense, milliseconds
            rows.append(Row(self.name, hole, ring, tiles, layout.share, *times, ratio, limit, ratio / limit))
        return rows

    def call_on(self, hole: str, model: Any) -> None:
        self.use(hole)
        self.call(model)

    def work(self, call: Any) -> int:
        """Multiply-adds of a call; those of attention are counted apart."""
        counter = FlopCounterMode(display=False)
        with attention_macs() as attention, counter:
            call()
        return counter.get_total_flops() // 2 + sum(attention)

    def wholes(self) -> list[Whole]:
        self.use("compact")

        def seconds(model: Any) -> float:
            start = self.stopwatch.clock()
            self.sample(model, STEPS)
            return self.stopwatch.clock() - start

        dense, found = seconds(self.model), []
        for mode, settings in MODES.items():
            lazy = self.lazy(self.context(**settings))
            first, following = seconds(lazy), seconds(lazy)
            found.append(Whole(self.name, mode, dense, first, dense / first, following, dense / following))
        return found

    def composed(self, rows: Sequence[Row]) -> list[Whole]:
        """The same, put together from the times of calls."""
        self.use("compact")
        row = next(row for row in rows if (row.hole, row.ring) == ("compact", KVSettings().ring))
        (first,) = self.harness.medians([lambda: self.call(self.lazy(self.context(anchors=1)))], self.stopwatch)
        dense, one, lazy = row.dense_ms / 1000, first / 1000, row.lazy_ms / 1000
        edits = {
            "recorded": automatic_levels(STEPS) * one + STEPS * lazy,
            f"{ANCHORS} anchors": ANCHORS * one + (STEPS - ANCHORS) * lazy,
        }
        return [
            Whole(self.name, mode, STEPS * dense, edit, STEPS * dense / edit, STEPS * lazy, dense / lazy)
            for mode, edit in edits.items()
        ]

    def kept(self) -> list[Kept]:
        rows = []
        for hole, precision in (("compact", "model"), ("compact", "fp8"), ("specks", "model")):
            self.use(hole)
            context = self.context(anchors=1, precision=precision, ring=0)
            self.call(self.lazy(context))
            with_anchor = tensor_bytes()
            self.cache_of(context).clear()
            measured, formula = with_anchor - tensor_bytes(), self.unet.unet_bytes(self.model, context)
            sizes = measured / MEGABYTE, formula / MEGABYTE, measured / formula
            rows.append(Kept(self.name, hole, precision, *sizes))
        return rows


@contextmanager
def attention_macs() -> Iterator[list[int]]:
    """Of each attention in here that torch has a kernel for: queries · keys · twice the width."""
    counts: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        counts.append(2 * q.numel() * k.shape[-2])
        return attend(q, k, v, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = counted
    try:
        yield counts
    finally:
        torch.nn.functional.scaled_dot_product_attention = attend


def figures(
    cases: Sequence[Case], rows: Sequence[Row], wholes: Sequence[Whole], kept: Sequence[Kept]
) -> dict[str, float]:
    """Of calls, those that compute the hole without a ring; of samplings, the defaults of the nodes."""
    found: dict[str, float] = {}
    for case in cases:
        own = [row for row in rows if row.network == f"{case.shape.name}, {case.side} px"]
        compact, _, scattered = own
        found[f"{case.name}_step_ratio_at_10_percent"] = compact.ratio
        found[f"macs_limit_{case.name}"] = compact.limit
        found[f"{case.name}_share_of_limit"] = compact.reached
        found[f"{case.name}_step_ratio_specks"] = scattered.ratio
    recorded, anchors, *_ = wholes  # of the first network
    for whole, beginning in ((recorded, ""), (anchors, "anchors_")):
        found[f"{beginning}end_to_end_{STEPS}_steps"] = whole.first_ratio
        found[f"{beginning}next_variation_{STEPS}_steps"] = whole.next_ratio
    found["diffedit_over_fisedit"] = ByWords.of(recorded).ratio
    found["cache_over_formula"] = max((row.over_formula for row in kept), key=lambda ratio: abs(ratio - 1))
    return {name: round(value, 4) for name, value in found.items()}


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "narrower, samplings composed of calls", repeat=5)
    harness = Harness.of(parser.parse_args(argv))
    torch.manual_seed(0)
    name = load_pack(harness.on_cpu)
    rows: list[Row] = []
    wholes: list[Whole] = []
    kept: list[Kept] = []
    notes = [
        f"{harness.conditions}, {'fp32' if harness.on_cpu else 'bf16'}, torch {torch.__version__}; random weights, "
        f"true blocks, a hole of {PERCENT} %, one prompt",
    ]
    for case in CASES:
        bench = UNetBench(lambda part: importlib.import_module(name + part), case, harness)
        notes.append(f"{bench.name}: width {bench.sizes['model_channels']} of {case.shape.sizes['model_channels']}")
        own = bench.rows()
        rows += own
        if case is not CASES[2]:
            wholes += bench.composed(own) if harness.quick else bench.wholes()
        kept += bench.kept()
    by_words = [ByWords.of(whole) for whole in wholes[:: len(MODES)]]
    results = {"calls": rows, "samplings": wholes, "by words": by_words, "memory": kept}
    markdown = "\n\n".join([
        "\n".join(f"- {note}" for note in notes), *(table(each, HEADS[type(each[0])]) for each in results.values()),
    ])  # fmt: skip
    print(markdown)
    tables = {name: [row._asdict() for row in each] for name, each in results.items()}
    harness.write("unet", figures(CASES, rows, wholes, kept), notes=notes, **tables)
    (harness.output / "unet.md").write_text(markdown + "\n", "utf-8")


if __name__ == "__main__":
    main()
