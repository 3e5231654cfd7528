"""The canvas's benchmark runs and tells what it should; its numbers are not asserted here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import canvas

from .conftest import checkout

pytestmark = pytest.mark.host


def test_it_writes_what_page_and_processes_have_taken(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no Chromium on this machine")
    checkout()
    canvas.main(["--output", str(tmp_path), "--quick", "--repeat", "1"])
    report = json.loads((tmp_path / "canvas.json").read_text("utf-8"))
    figures = report["figures"]
    assert figures.keys() == {
        "first_preview_s", "finished_over_cli", "last_over_first_strokes", "server_growth_mb", "page_growth_mb",
    }  # fmt: skip
    assert 0 < figures["first_preview_s"] <= report["finished_s"] < 60 and report["cli_s"] > 0
    assert report["server_mb"] > 100 and report["page_mb"] > 20
    assert report["value_bytes"] < 2000
