"""Time of a step with gates at PixArt-α's size, through the nodes of the host.

    python -m benchmarks.gates_host --output DIR [--device cpu] [--layers 2] [--repeat 3] [--quick]

Needs a ComfyUI checkout (COMFYUI_PATH, or ~/comfy/ComfyUI). A LazyDiffusion model with random weights in the sizes of
PixArt-α XL/2 at 1024 px samples a hole of 10 %, without gates and with *Lazy Gates* at a ratio of a half: all modules
of every second step. Prints the times, each of a whole sampling divided by its steps, and what multiply-adds would have
saved; writes `gates_host.json`. On a CPU, times are processor time of one thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.config import PIXART_1024, NetworkConfig

from .comfyui import load_pack
from .harness import Harness, arguments
from .shipped import PROMPT, random_model
from .subjects import square_mask, tokens_of

PERCENT, STEPS, RATIO = 10, 10, 0.5
FILE = "random.safetensors"


def reduced(layers: int) -> NetworkConfig:
    """PixArt-α's decoder with so many blocks, which are alike, an encoder as small as can be, and a text encoder whose
    tokens are narrow: it works once for all steps."""
    return replace(PIXART_1024, decoder_depth=layers, encoder_depth=1, text_width=96, learned_variance=False)


def samplings(module: str, network: NetworkConfig, harness: Harness) -> list[Callable[[], Any]]:
    """A sampling without gates and one with them, which has been calibrated; module: what the pack's begin with."""
    import folder_paths

    import nodes

    def run(room: str, node: str, *inputs: Any) -> tuple[Any, ...]:
        return getattr(importlib.import_module(f"{module}nodes.{room}"), node).execute(*inputs).result

    harness.output.mkdir(parents=True, exist_ok=True)
    save_checkpoint(random_model(network, harness, "flow"), harness.output / FILE, harness.dtype)
    folder_paths.add_model_folder_path("lazydiffusion", str(harness.output))
    model, clip, vae = run("load", "LazyCheckpointLoader", FILE)
    (harness.output / FILE).unlink()
    image, mask = torch.rand(1, network.canvas, network.canvas, 3), square_mask(network.canvas, PERCENT)[:, 0]
    [prompt] = nodes.CLIPTextEncode().encode(clip, PROMPT)
    context = run("context", "LazyContextEncode", model, vae, image, mask, 0, 0)[0]
    [gated] = run("gates", "LazyGates", model, "calibrate", RATIO, 0.5)
    settings = context, prompt, prompt, 0, STEPS, 1.0, "euler", "simple", 1.0, 1
    plain, skipping = (partial(run, "sample", "LazySample", each, *settings) for each in (model, gated))
    skipping()
    return [plain, skipping]


def work_saved(network: NetworkConfig) -> float:
    """Share of a sampling's multiply-adds that are not done."""
    tokens = tokens_of(network, PERCENT)
    skippable = network.decoder_depth * sum(network.module_macs(tokens))
    return RATIO * skippable / network.macs(tokens, network.text_length)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "one layer", repeat=3)
    parser.add_argument("--layers", type=int, default=2, help="blocks of the decoder; they are alike (%(default)s)")
    args = parser.parse_args(argv)
    harness, network = Harness.of(args), reduced(1 if args.quick else args.layers)
    module = load_pack(harness.on_cpu)
    plain, gated = (time / STEPS for time in harness.medians(samplings(module, network, harness)))
    figures = {"step_ms": plain, "gated_step_ms": gated, "time_saved": 1 - gated / plain,
               "work_saved": work_saved(network)}  # fmt: skip
    setting = f"{network.decoder_depth} of PixArt-α XL/2's {PIXART_1024.decoder_depth} layers, 1024 px, {PERCENT} %"
    print(f"{setting}; {harness.conditions}")
    harness.write("gates_host", {name: round(value, 4) for name, value in figures.items()}, setting=setting)


if __name__ == "__main__":
    main()
