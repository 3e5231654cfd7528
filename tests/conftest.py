"""What every test relies on: one thread, a fixed seed, a tiny model, skips that say why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from samples import scene

from lazydiff.model import LazyDiffusion, ModelConfig, Sampling
from lazydiff.networks.config import PRESETS
from lazydiff.networks.text import train_vocabulary
from lazydiff.scenes import all_captions

# The tensors here are tiny: more threads only cost time, and the order of a sum would depend on the machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def vocabulary() -> bytes:
    return train_vocabulary(all_captions(), 160)


@pytest.fixture(scope="session", params=["flow", "iddpm"])
def model(request: pytest.FixtureRequest, vocabulary: bytes) -> LazyDiffusion:
    """A model of the shipped one's shape with next to no width and random weights, for each prediction type."""
    network = replace(
        PRESETS["small"], width=24, heads=2, decoder_depth=2, encoder_depth=2, text_width=16, channels=12,
        learned_variance=request.param == "iddpm",
    )  # fmt: skip
    sampler = {"flow": "ancestral", "iddpm": "iddpm"}[request.param]
    config = ModelConfig(network, request.param, "tiny", 1, Sampling(sampler, steps=3, guidance=2.0))
    tiny = LazyDiffusion.self_contained(config, vocabulary)
    tiny.initialise(0)
    torch.nn.init.normal_(tiny.decoder.final_layer.linear.weight, std=0.02)  # it starts at zero: nothing would show
    tiny.latent.fit(torch.cat([scene(i)[0] for i in range(30)]) * 2 - 1)
    return tiny.eval().requires_grad_(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last, because the host boots inside this process: no library test may run on the state it leaves behind.
    items.sort(key=lambda item: item.get_closest_marker("host") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests had a ComfyUI to run in: a run without one passes too, and should not look the same."""
    reports = {
        kind: [r for r in terminalreporter.getreports(kind) if "host" in getattr(r, "keywords", {})]
        for kind in ("passed", "failed", "error", "skipped")
    }
    ran = len(reports["passed"]) + len(reports["failed"]) + len(reports["error"])
    if ran or reports["skipped"]:
        terminalreporter.write_line(f"host tests: {ran} ran, {len(reports['skipped'])} skipped")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
