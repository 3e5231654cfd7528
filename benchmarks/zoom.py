"""A small hole on a large photograph, looked at through `zoom`, against the same hole on a canvas of a megapixel.

    python -m benchmarks.zoom --output DIR [--quick]

Needs a ComfyUI checkout (COMFYUI_PATH, or ~/comfy/ComfyUI). The whole graph: Lazy Context Encode, Lazy Sample, VAE
Decode, Poisson Blend. A Flux with next to no width and a VAE of Stable Diffusion's kind a quarter as wide as its own,
both with random weights: the smaller the networks, the more does the picture's size show. Every run is a process of its
own; memory is its peak (getrusage) above what it was when host, networks and picture were there. Writes `zoom.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .comfyui import load_pack
from .harness import Harness, arguments
from .kv_context import random_model
from .kv_shapes import FLUX

HOLE = 300  # px per side
STEPS, ANCHORS = 8, 2
PICTURES = {"zoom": (3000, 4000), "canvas": (1024, 1024)}  # height, width
QUICK = {"zoom": (300, 400), "canvas": (256, 256)}
SMALL = {"hidden_size": 256, "num_heads": 2, "depth": 1, "depth_single_blocks": 2}
CHANNELS = 32  # of the VAE's first convolution
MEBIBYTE = 1024 * 1024


def random_vae() -> Any:
    """A VAE of 16 channels as the host's loaders make it."""
    import comfy.sd

    sizes = dict(
        double_z=True, z_channels=16, resolution=256, in_channels=3, out_ch=3, ch=CHANNELS, ch_mult=[1, 2, 4, 4],
        num_res_blocks=2, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": sizes, "embed_dim": 16}}, dtype=torch.float32)
    for tensor in vae.first_stage_model.state_dict().values():
        tensor.normal_(std=0.02)
    vae.latent_channels = 16
    return vae


class Graph:
    """An edit of one picture with a hole in its middle."""

    def __init__(self, size: tuple[int, int], hole: int, zoom: bool):
        import nodes

        self.nodes, self.vae = nodes.NODE_CLASS_MAPPINGS, random_vae()
        self.model = random_model(FLUX, {**FLUX.sizes, **SMALL}, "cpu")
        self.image, self.mask = torch.rand(1, *size, 3), torch.zeros(1, *size)
        top, left = ((side - hole) // 2 for side in size)
        self.mask[:, top : top + hole, left : left + hole] = 1
        words, pooled = torch.randn(1, FLUX.text, FLUX.text_width), torch.randn(1, FLUX.pooled)
        self.prompt = [[words, {"pooled_output": pooled}]]
        self.settings: dict[str, Any] = {"anchors": ANCHORS}
        if zoom:
            self.settings |= {"zoom": "around the hole", "zoom_megapixels": (hole / HOLE) ** 2}

    def call(self, node: str, *args: Any, **kwargs: Any) -> Any:
        kind = self.nodes[node]
        if hasattr(kind, "GET_SCHEMA"):
            return kind.execute(*args, **kwargs).result[0]
        return getattr(kind(), kind.FUNCTION)(*args, **kwargs)[0]

    def run(self) -> Tensor:
        """Load Image's picture -> Save Image's."""
        context = self.call("LazyContextEncode", self.model, self.vae, self.image, self.mask, 0, 0, **self.settings)
        settings = 1, STEPS, 1.0, "euler", "simple", 1.0, 1
        samples = self.call("LazySample", self.model, context, self.prompt, self.prompt, *settings)
        decoded = self.call("VAEDecode", self.vae, samples)
        return self.call("PoissonBlend", self.image, decoded, self.mask, "source", 0, False, context)


@torch.inference_mode()
def measured(case: str, quick: bool) -> dict[str, Any]:
    """One run in this process."""
    load_pack(cpu=True)
    torch.manual_seed(0)
    hole = HOLE // 4 if quick else HOLE
    Graph((64, 64), 32, zoom=False).run()  # what happens once in a process
    return costs(Graph((QUICK if quick else PICTURES)[case], hole, zoom=case == "zoom"))


def costs(graph: Graph) -> dict[str, Any]:
    """Of one edit, and whether it is right."""
    clock = Harness(Path()).clock
    before, start = peak(), clock()
    result = graph.run()
    seconds, memory = clock() - start, peak() - before
    outside = graph.mask == 0
    exact = torch.equal(result[outside], graph.image[outside])
    changed = float((result != graph.image).any(-1)[~outside].float().mean())
    return {"seconds": seconds, "megabytes": memory, "outside_exact": exact, "changed_inside": changed}


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEBIBYTE


def in_a_process(case: str, quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.zoom", "--output", ".", "--case", case, *["--quick"] * quick]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "a quarter of all lengths", repeat=3)
    parser.add_argument("--case", choices=PICTURES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    harness = Harness.of(args)
    if args.case:
        print(json.dumps(measured(args.case, harness.quick)))
        return
    turns = [{case: in_a_process(case, harness.quick) for case in PICTURES} for _ in range(harness.repeat)]
    table = {
        case: {
            "size": (QUICK if harness.quick else PICTURES)[case],
            **{name: statistics.median(turn[case][name] for turn in turns) for name in ("seconds", "megabytes")},
            "outside_exact": all(turn[case]["outside_exact"] for turn in turns),
            "changed_inside": min(turn[case]["changed_inside"] for turn in turns),
        }
        for case in PICTURES
    }
    zoom, canvas = table["zoom"], table["canvas"]
    figures = {
        "time_ratio": zoom["seconds"] / canvas["seconds"],
        "memory_ratio": zoom["megabytes"] / canvas["megabytes"],
        "outside_exact": float(zoom["outside_exact"] and canvas["outside_exact"]),
    }
    harness.write("zoom", figures, steps=STEPS, anchors=ANCHORS, hole=HOLE, table=table, turns=turns)


if __name__ == "__main__":
    main()
