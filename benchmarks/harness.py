"""The harness of every benchmark: its arguments, the machine it runs on, times taken in turns, and its report."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lazydiff.core.files import whole_file

Call = Callable[[], object]
QUICK_REPEAT = 2  # with --quick, at most


def arguments(description: str | None, quick: str, repeat: int | None = None) -> argparse.ArgumentParser:
    """--output, --device, --quick and, of what is timed more than once, --repeat.

    quick: what --quick leaves out beside repeats; repeat: as many turns, if it is not told otherwise
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    repeats = "" if repeat is None else f"; at most {QUICK_REPEAT} repeats"
    parser.add_argument("--quick", action="store_true", help=quick + repeats)
    if repeat is not None:
        parser.add_argument("--repeat", type=int, default=repeat, help="turns of each call (%(default)s)")
    return parser


@dataclass(frozen=True)
class Harness:
    """One run of a benchmark. On a CPU, one thread is used from here on."""

    output: Path
    device: str = "cpu"
    quick: bool = False
    repeat: int = 1  # turns of each call

    @classmethod
    def of(cls, args: argparse.Namespace) -> Harness:
        """args: of a parser that `arguments` made"""
        repeat = getattr(args, "repeat", 1)
        return cls(args.output, args.device, args.quick, min(repeat, QUICK_REPEAT) if args.quick else repeat)

    def __post_init__(self) -> None:
        if self.on_cpu:
            torch.set_num_threads(1)

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """What networks are run in, where nothing speaks against it."""
        return torch.float32 if self.on_cpu else torch.float16

    @property
    def machine(self) -> str:
        """The device in words."""
        if not self.on_cpu:
            return torch.cuda.get_device_name(self.device)
        return f"one thread of {platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"

    @property
    def conditions(self) -> str:
        """Under which times were taken, for tables and titles."""
        return f"{self.machine}, median of {self.repeat}"

    def clock(self) -> float:
        """Seconds. Of a CPU, processor time: what the clock shows on an idle machine, undisturbed by other programs on
        a busy one. Of an accelerator, the clock, once the device has done what it was told."""
        if self.on_cpu:
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def medians(self, calls: Sequence[Call], clock: Callable[[], float] | None = None) -> list[float]:
        """Median milliseconds of each call; see `interleaved_medians`."""
        return [1000 * seconds for seconds in interleaved_medians(calls, self.repeat, clock or self.clock)]

    def write(self, name: str, figures: Mapping[str, float], picture: Figure | None = None, **details: Any) -> None:
        """Print the figures; write them with all details to `name`.json, and the picture to `name`.png."""
        report = {
            "figures": figures, "machine": self.machine, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "quick": self.quick, "repeat": self.repeat, **details,
        }  # fmt: skip
        print(json.dumps(figures, indent=2))
        self.output.mkdir(parents=True, exist_ok=True)
        with whole_file(self.output / f"{name}.json") as unfinished:
            unfinished.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if picture is not None:
            picture.savefig(self.output / f"{name}.png", dpi=120)


def interleaved_medians(calls: Sequence[Call], repeat: int, clock: Callable[[], float]) -> list[float]:
    """Median seconds of each call; the calls take turns, so that a slow moment of the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(repeat + 1):
        for call, times in zip(calls, seconds, strict=True):
            start = clock()
            call()
            if turn:  # the first turn warms up
                times.append(clock() - start)
    return [statistics.median(times) for times in seconds]


def tensor_bytes() -> int:
    """Memory behind all tensors that exist: each storage once, and whole, however little of it a tensor shows."""
    gc.collect()
    kinds = (Tensor, torch.nn.Parameter)  # subclasses may have no memory of their own
    tensors = [x for x in gc.get_objects() if type(x) in kinds and x.device.type != "meta"]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def finish(axes: Axes, ticks: Sequence[float], title: str) -> None:
    """Name the ticks of a logarithmic axis; add grid, title and legend."""
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=9)
    axes.legend()
