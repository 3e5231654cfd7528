"""Train a small VAE of Stable Diffusion's architecture on pictures of the world of scenes, for `lazy_vae.py`.

    python -m benchmarks.train_vae --output benchmarks/weights [--steps 5000] [--seed 0]

Writes `tiny-vae.safetensors` (half precision), `tiny-vae.json` (architecture and quality on held-out pictures) and
`tiny-vae.csv` (the log). All randomness is a function of seed and step: the same command goes on where a stopped run
was. One CPU core takes about twenty minutes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lazydiff.core.files import whole_file

from .harness import Harness
from .vae_pictures import picture

WEIGHTS = Path(__file__).parent / "weights"
NAME = "tiny-vae"
ARCHITECTURE: dict[str, Any] = {
    "block_out_channels": (16, 32, 48, 48), "norm_num_groups": 4, "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
BATCHES = ((4, 64), (2, 96), (4, 64), (1, 192))  # pictures and px, in turn: statistics of all sizes of map
RATE, WARM_UP, CLIP = 1e-3, 100, 1.0
KL = 1e-5  # beside absolute and squared errors per value: light, as in latent diffusion
GUIDED = 1500  # steps in which latents are drawn, ever less, to the colours of their cells, which else come late
CHECKPOINT = 250  # steps
HELD_OUT = 2**32 - 1  # a first number of seeds that no training run has
QUALITY = ((32, 96), (16, 256), (4, 512))  # held-out pictures and px


def new_vae() -> AutoencoderKL:
    """Fresh weights, with a narrow posterior to begin with: noise as large as the latents hides all but brightness."""
    vae = AutoencoderKL(**ARCHITECTURE)
    torch.nn.init.constant_(vae.quant_conv.bias[ARCHITECTURE["latent_channels"] :].data, -6)
    return vae


def load_vae(path: Path = WEIGHTS / f"{NAME}.safetensors") -> AutoencoderKL:
    """The trained VAE in float32, for inference."""
    vae = new_vae()
    vae.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return vae.eval().requires_grad_(False)


def held_out(number: int, size: int) -> Tensor:
    """A picture [1, 3, size, size] in -1…1 that no training run has seen."""
    return picture(np.random.default_rng([HELD_OUT, size, number]), size)[None]


def loss(vae: AutoencoderKL, image: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The training loss, and the mean squared error within it."""
    with torch.autocast("cpu", torch.bfloat16):
        latent = vae.encode(image).latent_dist
        sample = latent.mean + latent.std * torch.randn(latent.mean.shape, generator=generator)
        decoded = vae.decode(sample).sample.float()
    error = decoded - image
    mean, logvar = latent.mean.float(), latent.logvar.float()
    divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    guide = max(1 - step / GUIDED, 0) * F.mse_loss(mean[:, :3], opponent(F.avg_pool2d(image, 8)))
    absolute, squared = error.abs().mean() + opponent(error).abs().mean(), (error**2).mean()
    return absolute + squared + KL * divergence + guide, squared.detach()


def opponent(x: Tensor) -> Tensor:
    """Brightness, red against blue, green against both [B, 3, H, W], each of a deviation of about one."""
    red, green, blue = x.unbind(1)
    return torch.stack(((red + green + blue) * 0.7, (red - blue) * 2.5, (2 * green - red - blue) * 2.5), 1)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return min((step + 1) / WARM_UP, 1) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(output: Path, steps: int, seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    vae = new_vae()
    optimiser = torch.optim.Adam(vae.parameters(), betas=(0.9, 0.99))
    start, log = 0, ["step,loss,psnr"]
    state = output / f"{NAME}.state"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        vae.load_state_dict(saved["vae"])
        optimiser.load_state_dict(saved["optimiser"])
        start, log = saved["step"], saved["log"]
    for step in tqdm(range(start, steps), initial=start, total=steps, mininterval=10):
        number, size = BATCHES[step % len(BATCHES)]
        rng = np.random.default_rng([seed, step])
        image = torch.stack([picture(rng, size) for _ in range(number)])
        for group in optimiser.param_groups:
            group["lr"] = RATE * rate(step, steps)
        optimiser.zero_grad()
        value, squared = loss(vae, image, step, torch.Generator().manual_seed(int(rng.integers(2**63))))
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), CLIP)
        optimiser.step()
        log.append(f"{step},{value.item():.4f},{psnr(squared):.2f}")
        if (step + 1) % CHECKPOINT == 0:
            saved = {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1, "log": log}
            with whole_file(state) as unfinished:
                torch.save(saved, unfinished)
            (output / f"{NAME}.csv").write_text("\n".join(log) + "\n", "utf-8")
    return vae.eval()


def psnr(squared: Tensor) -> float:
    """Of a mean squared error of values in -1…1, in dB."""
    return float(10 * torch.log10(4 / squared))


@torch.inference_mode()
def quality(vae: AutoencoderKL) -> dict[str, Any]:
    """Mean PSNR on held-out pictures by their size, and the deviation of their latents."""
    report: dict[str, Any] = {"psnr": {}}
    for number, size in QUALITY:
        images = [held_out(i, size) for i in range(number)]
        latents = [vae.encode(image).latent_dist.mean for image in images]
        errors = [F.mse_loss(vae.decode(z).sample.clamp(-1, 1), x) for z, x in zip(latents, images, strict=True)]
        report["psnr"][f"{size} px"] = round(sum(map(psnr, errors)) / number, 2)
        report["latent_deviation"] = round(float(torch.cat(latents).std()), 4)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    harness = Harness(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    vae = train(args.output, args.steps, args.seed)
    path = args.output / f"{NAME}.safetensors"
    with whole_file(path) as unfinished:
        save_file({name: tensor.half().contiguous() for name, tensor in vae.state_dict().items()}, unfinished)
    report = {
        "architecture": ARCHITECTURE, "steps": args.steps, "seed": args.seed, "machine": harness.machine,
        "torch": torch.__version__, **quality(load_vae(path)),
    }  # fmt: skip
    (args.output / f"{NAME}.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
