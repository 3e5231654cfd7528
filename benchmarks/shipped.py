"""Time of an edit on a canvas of 512×512 pixels, from pixels to pixels, with the architecture of the 512 px model.

    python -m benchmarks.shipped --output DIR [--percent 10] [--steps 20] [--repeat 3] [--quick]

Weights are random: time does not depend on them. Three edits take turns: the next edit on a canvas that is open (its
latents are there, the hole is new), one more variation of a hole whose context is there, and the same network
without encoder on all tokens (RegenerateImage), which is the dense way. Prints their times and ratios and writes
`shipped.json`. On a CPU, times are processor time of one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lazydiff.evaluation.regenerate import regenerate
from lazydiff.model.config import LARGE, ModelConfig, NetworkConfig, Prediction, Sampling
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.model.text import train_vocabulary
from lazydiff.pipeline.canvas import edit_canvas, encode_canvas, open_canvas
from lazydiff.pipeline.decode import composite, to_latents
from lazydiff.pipeline.sample import SampleSettings, sample
from lazydiff.vae.canvas_vae import WholeVAE
from lazydiff.world import world_captions

from .harness import Harness, arguments

CLEAN_UP = 128  # channels
PROMPT, SEED = "a striped red tree", 0
QUICK_STEPS = 2


def random_model(network: NetworkConfig, harness: Harness, prediction: Prediction = "wiener") -> LazyDiffusion:
    config = ModelConfig(network, prediction, sampling=Sampling("ancestral", guidance=1.0), clean_up=CLEAN_UP)
    model = LazyDiffusion.self_contained(config, train_vocabulary(world_captions(), 200))
    model.initialise(SEED)
    return model.eval().requires_grad_(False).to(harness.device)


def square_hole(side: int, percent: float) -> Tensor:
    """A mask [1, 1, side, side] whose hole in the middle is so much of it."""
    mask, half = torch.zeros(1, 1, side, side), round(side * (percent / 100) ** 0.5 / 2)
    mask[..., side // 2 - half : side // 2 + half, side // 2 - half : side // 2 + half] = 1
    return mask


@torch.inference_mode()
def measure(network: NetworkConfig, harness: Harness, percent: float, sampling: Sampling) -> list[float]:
    """Milliseconds of an edit, a variation, and the dense way."""
    lazy, dense = (random_model(each, harness) for each in (network, replace(network, encoder_depth=0)))
    image = torch.rand(1, 3, network.canvas, network.canvas, device=harness.device)
    mask = square_hole(network.canvas, percent).to(harness.device)
    canvas = open_canvas(WholeVAE(lazy.latent), image)
    known = encode_canvas(lazy, canvas, mask)
    settings = SampleSettings(sampling)

    def edit() -> Tensor:
        context = encode_canvas(lazy, canvas, mask)
        tokens = sample(lazy, context, [PROMPT], [SEED], settings)
        return edit_canvas(canvas, to_latents(context, tokens), mask).image

    def variation() -> Tensor:
        tokens = sample(lazy, known, [PROMPT], [SEED], settings)
        return edit_canvas(canvas, to_latents(known, tokens), mask).image

    def whole() -> Tensor:
        return composite(image, regenerate(dense, image, mask, [PROMPT], [SEED], sampling), mask)

    return harness.medians([edit, variation, whole])


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, f"{QUICK_STEPS} steps", repeat=3)
    parser.add_argument("--percent", type=float, default=10, help="of the canvas in the hole (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (%(default)s)")
    args = parser.parse_args(argv)
    harness, steps = Harness.of(args), QUICK_STEPS if args.quick else args.steps
    edit, variation, dense = measure(LARGE, harness, args.percent, Sampling("ancestral", steps, guidance=1.0))
    figures = {"edit_over_dense": round(dense / edit, 2), "variation_over_dense": round(dense / variation, 2)}
    table = {"edit_ms": round(edit, 1), "variation_ms": round(variation, 1), "dense_ms": round(dense, 1)}
    print(harness.conditions, table)
    harness.write("shipped", figures, canvas=LARGE.canvas, percent=args.percent, steps=steps, table=table)


if __name__ == "__main__":
    main()
