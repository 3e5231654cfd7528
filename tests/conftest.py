"""What every test relies on: one thread, a fixed seed, a tiny model, skips that say why."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from samples import tiny_model

from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.model.text import train_vocabulary
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
    """One like the one that ships, for each prediction type."""
    return tiny_model(request.param, vocabulary, "small")


@pytest.fixture(scope="session", params=["flow", "iddpm"])
def dense_model(request: pytest.FixtureRequest, vocabulary: bytes) -> LazyDiffusion:
    """The like of the baseline that computes every token."""
    return tiny_model(request.param, vocabulary, "small-image")


@pytest.fixture(scope="session")
def crop_model(vocabulary: bytes) -> LazyDiffusion:
    """The like of the baseline that sees the square around the hole alone."""
    return tiny_model("flow", vocabulary, "small-crop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last, because the host boots inside this process: no library test may run on the state it leaves behind.
    items.sort(key=lambda item: item.get_closest_marker("host") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped, one line for each reason, and how many had a ComfyUI to run in: a run without one
    passes too, and should not look the same."""
    skipped = terminalreporter.getreports("skipped")
    for reason, count in sorted(Counter(map(reason_of, skipped)).items()):
        terminalreporter.write_line(f"{count} skipped: {reason}")
    host = {
        kind: [report for report in terminalreporter.getreports(kind) if "host" in getattr(report, "keywords", {})]
        for kind in ("passed", "failed", "error", "skipped")
    }
    ran = len(host["passed"]) + len(host["failed"]) + len(host["error"])
    if ran or host["skipped"]:
        terminalreporter.write_line(f"host tests: {ran} ran, {len(host['skipped'])} skipped")


def reason_of(report: pytest.TestReport) -> str:
    """Of a skip, whose report has file, line and “Skipped: reason”."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
