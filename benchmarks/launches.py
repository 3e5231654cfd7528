"""Kernel launches and waits of a step, a VAE's decode and a blend, counted on a pretended GPU.

    python -m benchmarks.launches --output DIR

Prints the figures and writes `launches.json`. A launch costs the host 5 to 10 µs whatever is computed, so that a GPU
that is asked in many small pieces waits for them; and the host waits each time it wants to know a number. Counts do not
depend on the widths of layers, which are small here; tokens, blocks and pixels are the real ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pretended_gpu import PretendedGPU, pretended_gpu  # noqa: E402
from lazydiff.core.masks import feather, grow  # noqa: E402
from lazydiff.core.poisson import poisson_blend  # noqa: E402
from lazydiff.core.tokens import HoleTokens  # noqa: E402
from lazydiff.evaluation.laboratory import SMALL  # noqa: E402
from lazydiff.model.checkpoint import load_checkpoint  # noqa: E402
from lazydiff.model.config import PIXART_1024, Sampling  # noqa: E402
from lazydiff.model.decoder import LazyDecoder  # noqa: E402
from lazydiff.pipeline.encode import encode  # noqa: E402
from lazydiff.pipeline.sample import SampleSettings, sample  # noqa: E402
from lazydiff.sampling.samplers import SAMPLERS  # noqa: E402
from lazydiff.vae import lazy_vae  # noqa: E402

TOKENS = 410  # 10 % of the canvas
NARROW = {"width": 144, "heads": 2, "text_width": 64}  # with PixArt's 72 numbers per head
SIDE, HOLE = 1024, (slice(352, 672), slice(352, 672))  # 10 % of the canvas
WIDTHS = (128, 256, 512, 512)  # of Stable Diffusion's VAE


def decoder_call(depth: int, counts: tuple[int, ...] = (TOKENS, TOKENS), rotary: bool = False) -> Callable[[], Any]:
    """One call of PixArt's decoder for a guided pair in half precision, whose prompts are padded."""
    config, half = replace(PIXART_1024, decoder_depth=depth, rotary=rotary, **NARROW), {"dtype": torch.float16}
    decoder = LazyDecoder(config, **half).to("cuda").eval()
    text = torch.randn(len(counts), config.text_length, config.text_width, **half).to("cuda")
    keys = decoder.text_keys(text, torch.ones(len(counts), config.text_length, dtype=torch.bool).to("cuda"))
    mask = torch.stack([(torch.arange(config.grid**2) < n).view(config.grid, config.grid) for n in counts])
    hole, rows = HoleTokens.from_grid_mask(mask).to("cuda"), (len(counts), max(counts))
    x = torch.randn(*rows, config.channels * config.patch**2, **half).to("cuda")
    context, t = torch.randn(*rows, config.width, **half).to("cuda"), torch.full((1,), 500).to("cuda")
    return lambda: decoder(x, t, keys, hole, context)


def decoder_launches(
    gpu: PretendedGPU, counts: tuple[int, ...] = (TOKENS, TOKENS), rotary: bool = False
) -> tuple[float, float]:
    """Launches of each block, and of all else."""
    calls = [decoder_call(depth, counts, rotary) for depth in (1, 3)]
    for call in calls:
        call()  # the first places positions and packing
    one, three = (gpu.count(call).total() for call in calls)
    return (three - one) / 2, one - (three - one) / 2


def step_waits(gpu: PretendedGPU, sampler: str) -> Counter[tuple[str, str]]:
    """What each further step of a sampling waits for or copies from memory that is not pinned, by kind and line."""
    model = load_checkpoint(SMALL, device="cuda")
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., 24:56, 24:56] = 1
    context = encode(model, torch.rand(1, 3, 96, 96), mask)

    def seen(steps: int) -> Counter[tuple[str, str]]:
        settings = SampleSettings(Sampling(sampler, steps, guidance=3.0))
        gpu.count(lambda: sample(model, context, ["a red tree"], [1], settings))
        return gpu.waits + gpu.copies

    seen(2)
    return seen(4) - seen(3)


def vae(widths: tuple[int, ...], groups: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=widths, norm_num_groups=groups, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval().requires_grad_(False)  # fmt: skip


def vae_launches(gpu: PretendedGPU) -> dict[str, int]:
    """Of the VAE's own decode, of one that leaves a state, of a lazy one, and of what an edit takes of the last two."""
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., HOLE[0], HOLE[1]] = 1
    mask = mask.to("cuda")
    with torch.device("meta"):
        real = vae(WIDTHS, 32)
    lazy = lazy_vae.plan_decode(real, mask).share <= lazy_vae.LIMIT
    narrow = vae(tuple(width // 32 for width in WIDTHS), 4).to("cuda")
    latent = torch.randn(1, 4, SIDE // 8, SIDE // 8).to("cuda")
    state = lazy_vae.full_decode(narrow, latent)
    counts = {
        "full": gpu.count(lambda: narrow.decode(latent)).total(),
        "full_with_state": gpu.count(lambda: lazy_vae.full_decode(narrow, latent)).total(),
        "lazy": gpu.count(lambda: lazy_vae.lazy_decode(narrow, latent, state, mask, limit=float("inf"))).total(),
    }
    return counts | {"chosen": counts["lazy" if lazy else "full_with_state"]}


def blend_counts(gpu: PretendedGPU) -> dict[str, dict[str, int]]:
    """Launches and waits of what stands around a sampling, at 1024 px."""
    image, other = (torch.rand(1, 3, SIDE, SIDE).to("cuda") for _ in range(2))
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., HOLE[0], HOLE[1]] = 1
    mask = mask.to("cuda")
    calls = {
        "poisson": lambda: poisson_blend(image, other, mask),
        "grow": lambda: grow(mask, 16),
        "feather": lambda: feather(mask, 16),
    }
    return {
        name: {"launches": gpu.count(call).total(), "waits": (gpu.waits + gpu.copies).total()}
        for name, call in calls.items()
    }


@torch.no_grad()
def count() -> dict[str, Any]:
    with pretended_gpu() as gpu:
        (per_block, fixed), packed = decoder_launches(gpu), decoder_launches(gpu, (TOKENS, TOKENS - 40))
        waits = {sampler: step_waits(gpu, sampler).total() for sampler in SAMPLERS}
        decode, blends = vae_launches(gpu), blend_counts(gpu)
    return {
        "figures": {
            "launches_per_block": per_block,
            "launches_fixed": fixed,
            "waits_per_step": max(waits.values()),
            "lazy_decode_over_full_launches": round(decode["chosen"] / decode["full"], 2),
        },
        "setting": f"PixArt-α XL/2 at 1024 px, {TOKENS} tokens, guided pair, float16; a hole of 10 % at 1024 px",
        "packed": dict(zip(("launches_per_block", "launches_fixed"), packed, strict=True)),
        "waits_per_step": waits,
        "vae_decode": decode,
        "around": blends,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    report = count() | {"torch": torch.__version__}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "launches.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
