"""Train the UNet of `scene_unet.py` on the built-in scenes, for `unet_quality.py`.

    python -m benchmarks.train_unet --output DIR [--steps 6000] [--precision bf16] [--seed 0]

Writes `scene-unet.safetensors` (averaged weights in half precision) and `scene-unet.csv` (the log). All randomness is a
function of seed and step: the same command goes on where a stopped run was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lazydiff.core.files import whole_file
from lazydiff.core.tokens import patchify
from lazydiff.data.batch import Batch
from lazydiff.data.stream import ExampleStream, ReadingPlan, SceneExamples, read_batches
from lazydiff.sampling.flow import draw_sigmas, flow_loss, predict_clean
from lazydiff.training.average import Average
from lazydiff.training.train import step_generator

from .harness import Harness
from .scene_unet import CELL, SceneUNet

NAME = "scene-unet"
BATCH = 16
RATE, WARM_UP, DECAY_FROM, CLIP, EMA = 1e-3, 200, 0.7, 1.0, 0.998
NOISE = 0.7, 1.3  # mean and deviation of the noise levels' logits, as the baseline RegenerateImage was trained
DROP_TEXT = 0.1
FITTED = 400  # pictures from which the latent space is measured
CHECKPOINT = 100  # steps


def loss(model: SceneUNet, batch: Batch, generator: torch.Generator) -> Tensor:
    """On cells of the holes; channels count by their variance."""
    assert batch.image is not None
    image, mask = batch.image.float() / 127.5 - 1, batch.mask.float()
    dropped = torch.rand(len(image), generator=generator) < DROP_TEXT
    captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), batch.captions, strict=True)]
    clean, seen = patchify(model.latent.encode(image), 1), model.seen(image, mask)
    noise = torch.randn(clean.shape, generator=generator)
    sigmas = draw_sigmas(1, len(image), *NOISE, generator)
    sigmas = sigmas[torch.randperm(len(image), generator=generator)]
    hole, weight = seen[:, :1].flatten(1), model.variance / model.variance.mean()
    estimate = partial(predict_clean, model.bound(seen, captions), variance=model.variance)
    return flow_loss(estimate, clean, noise, sigmas, model.variance, hole, weight)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, constant, linear decay to zero."""
    return min((step + 1) / WARM_UP, 1.0, (steps - step) / (steps * (1 - DECAY_FROM)))


def train(output: Path, steps: int, seed: int, precision: str) -> None:
    torch.manual_seed(seed)
    model, examples = SceneUNet(), SceneExamples(seed)
    model.unet.set_attn_processor(AttnProcessor())  # three times as fast on a CPU as torch's fused attention
    pictures = torch.from_numpy(examples.pictures(FITTED, seed)).permute(0, 3, 1, 2)
    model.latent.fit(pictures.float() / 127.5 - 1)
    optimiser = torch.optim.AdamW(model.unet.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    average = Average(model.unet, EMA)
    start, log, state = 0, ["step,loss"], output / f"{NAME}.state"
    if state.exists():
        saved: dict[str, Any] = torch.load(state, weights_only=True)
        model.unet.load_state_dict(saved["unet"])
        optimiser.load_state_dict(saved["optimiser"])
        average.parameters = saved["average"]
        start, log = saved["step"], saved["log"]
    plan = ReadingPlan(seed, BATCH, readers=1, token=CELL)
    batches = read_batches(ExampleStream(examples, plan, range(1), start), 1)
    for step in tqdm(range(start, steps), initial=start, total=steps, mininterval=60):
        for group in optimiser.param_groups:
            group["lr"] = RATE * rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss(model, next(batches)[0], step_generator(seed, step))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        average.update(first=step == 0)
        log.append(f"{step},{value.item():.4f}")
        if (step + 1) % CHECKPOINT == 0 or step + 1 == steps:
            saved = {
                "unet": model.unet.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1, "log": log,
                "average": average.parameters,
            }  # fmt: skip
            with whole_file(state) as unfinished:
                torch.save(saved, unfinished)
            publish(model, average, output)
            (output / f"{NAME}.csv").write_text("\n".join(log) + "\n", "utf-8")


def publish(model: SceneUNet, average: Average, output: Path) -> None:
    averaged = {f"unet.{name}": tensor for name, tensor in average.parameters.items()}
    with whole_file(output / f"{NAME}.safetensors") as unfinished:
        half = {name: averaged.get(name, tensor).half().contiguous() for name, tensor in model.trained.items()}
        save_file(half, unfinished)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    args = parser.parse_args(argv)

    Harness(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    train(args.output, args.steps, args.seed, args.precision)


if __name__ == "__main__":
    main()
