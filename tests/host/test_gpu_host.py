"""ComfyUI on a pretended GPU: every node without a mixed device, with the CPU's results, and what a step waits for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from . import gpu_checks
from .conftest import checkout
from .in_process import Pack

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]
Report = dict[str, dict[str, Any]]
# Sums in another order, and another of the host's attention functions; of a range of some units.
CLOSE = 1e-4
COUNTED = ("steps", "kv_steps", "blends", "chain_on_a_canvas", "weight_types", "little_memory", "memory_for_keys")


@pytest.fixture(scope="session")
def report(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What the checks have found, all of them in one process; skips where this one has no host."""
    if torch.version.cuda or torch.version.hip:
        pytest.skip("this torch knows real GPUs: the pretended one takes their place in builds for CPUs alone")
    file = tmp_path_factory.mktemp("gpu") / "report.pt"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    command = [sys.executable, "-m", "host.gpu_host", str(checkout()), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT / "tests", timeout=600)
    assert not done.returncode, done.stderr[-4000:]
    found: Report = torch.load(file)
    return found


def found(report: Report, name: str) -> dict[str, Any]:
    if "error" in report[name]:
        pytest.fail(report[name]["error"])
    return report[name]


@pytest.fixture(scope="module")
def cpu(pack: Pack) -> Any:
    """This process's host, as checks see it."""
    import comfy.model_management as mm

    return SimpleHost(pack, mm)


class SimpleHost(SimpleNamespace):
    """Hashable, as the checks remember what a host has loaded."""

    __hash__ = object.__hash__

    def __init__(self, pack: Pack, mm: Any):
        super().__init__(pack=pack, mm=mm, call=pack.call, part=pack.part, seen=lambda call: call())


@pytest.mark.parametrize("name", [name for name in gpu_checks.CHECKS if name not in COUNTED])
def test_results_are_the_cpus(report: Report, cpu: Any, name: str) -> None:
    on_gpu, on_cpu = found(report, name), gpu_checks.CHECKS[name](cpu)
    assert on_cpu
    for title, expected in on_cpu.items():
        if isinstance(expected, Tensor):
            tolerance = CLOSE * float(expected.abs().max())
            torch.testing.assert_close(on_gpu[title], expected, atol=tolerance, rtol=0, msg=f"{name}: {title}")


# Waits, copies and launches


@pytest.mark.parametrize("sampler", ["euler", gpu_checks.OWN])
def test_no_step_of_ours_waits_or_copies(report: Report, sampler: str) -> None:
    step = found(report, "steps")[sampler]
    assert (step["waits"], step["copies"]) == (0, 0), step["lines"]


def test_stock_samplers_wait_for_nothing_of_ours(report: Report) -> None:
    """The host's schedulers read their table number by number, before the first step."""
    step = found(report, "steps")["stock route"]
    assert (step["waits"], step["copies"]) == (1, 0) and all("elsewhere" in line for line in step["lines"])


def test_calibrated_gates_wait_for_nothing(report: Report) -> None:
    step = found(report, "steps")["gates"]
    assert (step["waits"], step["copies"]) == (0, 0), step["lines"]


@pytest.mark.parametrize("name", gpu_checks.STOCK)
def test_keys_add_no_wait_and_few_launches(report: Report, name: str) -> None:
    """Of a step between anchors, beside the same step of the model without a context."""
    steps = found(report, "kv_steps")
    alone, lazy = steps[f"{name} alone"], steps[name]
    assert (lazy["waits"], lazy["copies"]) == (alone["waits"], alone["copies"]), lazy["lines"]
    assert lazy["launches"] <= 1.12 * alone["launches"]


def test_pictures_are_blended_and_masks_grown_on_the_device(report: Report) -> None:
    """Three pictures go there and one comes back; in between only Poisson's box of the hole is waited for."""
    blends = found(report, "blends")
    for name, launches, waits, copies in (("blend", 500, 2, 3), ("grow and feather", 20, 1, 1)):
        assert blends[name]["launches"] > launches
        assert (blends[name]["waits"], blends[name]["copies"]) == (waits, copies), blends[name]["lines"]


@pytest.mark.parametrize("name", ["chain_on_a_canvas", "lazy_chain_on_a_canvas"])
def test_a_vaes_state_stays_on_the_device(report: Report, name: str) -> None:
    """Copied there are what goes into either half, and went into it before, and what is blended; copied back are the
    boxes of plans, and the picture, its latents and the hole's box."""
    chain = found(report, name)
    assert (chain["share"] < 1) == (name != "chain_on_a_canvas")
    for edit in ("0", "1", "2"):
        seen = chain[edit]
        assert (seen["pinned"], seen["copies"]) == (0, 6) and seen["waits"] <= 5, seen["lines"]


# Precision and memory


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("default", 0.02), ("fp16_unet", 0.003), ("bf16_unet", 0.02), ("fp8_e4m3fn", 0.1), ("fp8_e4m3fn_fast", 0.1),
        ("fp8_e5m2", 0.2), ("fp8_e4m3fn_unet", 0.1), ("fp8_e5m2_unet", 0.2),
    ],
)  # fmt: skip
def test_weights_of_every_type(report: Report, kind: str, error: float) -> None:
    """The difference to float32 in the hole, relative to the latent's deviation there."""
    types = found(report, "weight_types")
    exact = types["fp32"]
    hole = (types[kind] != exact).any(1, keepdim=True).expand_as(exact)
    assert 0 < float((types[kind] - exact)[hole].square().mean().sqrt() / exact[hole].std()) < error


@pytest.mark.parametrize("state", ["LOW_VRAM", "NO_VRAM"])
def test_weights_in_main_memory(report: Report, state: str) -> None:
    """--lowvram and --novram make the same pictures."""
    little, tolerance = found(report, "little_memory"), {"atol": 1e-4, "rtol": 0.0}
    torch.testing.assert_close(little[state], little["normal"], **tolerance)
    torch.testing.assert_close(little[f"{state}, KV"], found(report, "kv_contexts")["flux"], **tolerance)


def test_the_host_makes_room_for_kept_keys(report: Report) -> None:
    room = found(report, "memory_for_keys")
    assert room["kept"] > 0 and room["with keys"] - room["alone"] == pytest.approx(room["kept"], rel=0.2)
