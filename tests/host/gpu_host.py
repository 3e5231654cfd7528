"""ComfyUI with a pretended GPU, in a process of its own: the host decides on its device when it is imported.

    python -m host.gpu_host CHECKOUT FILE [CHECK …]

Makes every check of `gpu_checks`, or those that are named, and writes what they have found to FILE: a dictionary of
their answers, or of the traceback under "error".
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.comfyui import stand_in
from benchmarks.pretended_gpu import PretendedGPU, pretended_gpu

ROOT = Path(__file__).resolve().parents[2]


class GPUHost:
    """The host's own modules, with the pretended device as the one that models are loaded to."""

    def __init__(self, gpu: PretendedGPU, checkout: Path):
        stand_in()
        sys.path.insert(0, str(checkout))
        torch.version.cuda = "13.0"  # by which the host knows NVIDIA's devices
        import comfy.model_management as mm
        import folder_paths

        import nodes

        from .in_process import Pack  # here, where `inference_mode` is the pretended device's
        from .laboratory import add_laboratory

        assert mm.get_torch_device().type == "cuda"
        mm.FORCE_FP32 = True  # a check that wants another precision says so
        for name in ("input", "output", "temp"):
            getattr(folder_paths, f"set_{name}_directory")(tempfile.mkdtemp())
        assert asyncio.run(nodes.load_custom_node(str(ROOT))), "the host's log says why"
        for extra in ("custom_sampler", "mask", "flux", "model_advanced"):
            asyncio.run(nodes.load_custom_node(str(checkout / "comfy_extras" / f"nodes_{extra}.py")))
        add_laboratory(Path(tempfile.mkdtemp()))
        self.gpu, self.mm, self.pack = gpu, mm, Pack(nodes)
        self.call, self.part = self.pack.call, self.pack.part

    def seen(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Launches, waits and copies of a call, these two by kind and line as well, and what was brought to the device
        from pinned memory."""
        self.gpu.count(call)
        lines = {f"{kind}: {line}": n for (kind, line), n in (self.gpu.waits + self.gpu.copies).items()}
        brought = sum(n for (kind, _), n in self.gpu.pinned.items() if kind == "to the device")
        return {
            "launches": self.gpu.total, "waits": self.gpu.waits.total(), "copies": self.gpu.copies.total(),
            "pinned": brought, "lines": lines,
        }  # fmt: skip

    def per_step(self, sample: Callable[[int], Any], steps: tuple[int, int] = (4, 6)) -> dict[str, Any]:
        """Likewise of one step more, from two samplings of different length."""
        sample(1)  # the first places what the others find in its place
        few, many = (self.seen(lambda n=n: sample(n)) for n in steps)
        between, lines = steps[1] - steps[0], Counter(many.pop("lines"))
        lines.subtract(few.pop("lines"))
        answer = {name: (many[name] - few[name]) / between for name in many}
        return answer | {"lines": {line: n / between for line, n in lines.items() if n}}

    @contextlib.contextmanager
    def started_with(self, **settings: Any) -> Iterator[None]:
        """The host as other arguments of its command line make it."""
        from comfy.cli_args import args

        vram, full = settings.pop("vram_state", self.mm.vram_state), settings.pop("force_fp32", False)
        before = {name: getattr(args, name) for name in settings}, self.mm.vram_state, self.mm.FORCE_FP32
        self.mm.unload_all_models()
        vars(args).update(settings)
        self.mm.vram_state, self.mm.FORCE_FP32 = vram, full
        try:
            yield
        finally:
            self.mm.unload_all_models()
            vars(args).update(before[0])
            _, self.mm.vram_state, self.mm.FORCE_FP32 = before


def on_cpu(x: Tensor) -> Tensor:
    assert x.device.type == "cpu", "nodes hand out tensors of main memory"
    return x


def main(checkout: Path, file: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    answers = {}
    with pretended_gpu() as gpu:
        host = GPUHost(gpu, checkout)
        from . import gpu_checks

        for name, check in gpu_checks.CHECKS.items():
            if not names or name in names:
                begun = time.perf_counter()
                try:
                    answers[name] = check(host) or {}
                except Exception:
                    answers[name] = {"error": traceback.format_exc()}
                answers[name]["seconds"] = time.perf_counter() - begun
    torch.save(answers, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
