"""What the benchmarks have in common: their arguments and the machine they run on."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure


def arguments(description: str | None, quick: str) -> argparse.ArgumentParser:
    """--output, --device and --quick; quick: what the last one leaves out"""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def machine(device: str) -> str:
    """The device in words; of a CPU, one thread is used from here on."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    torch.set_num_threads(1)
    return f"one thread of {platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"


def write(output: Path, name: str, report: dict[str, Any], figure: Figure) -> None:
    """`name`.json, with the software's part in it, and `name`.png."""
    report = {**report, "threads": torch.get_num_threads(), "torch": torch.__version__}
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    figure.savefig(output / f"{name}.png", dpi=120)
