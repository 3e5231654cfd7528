"""The host's own front end in a browser without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .running_server import Server

READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types['LazySample']"


@contextmanager
def front_end(server: Server, elements: bool) -> Iterator[Any]:
    """A page of a fresh browser; elements: nodes are elements of the page (Nodes 2.0), where the front end has that."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    server.post("/settings/Comfy.VueNodes.Enabled", elements)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        # The host's own templates are a package that is not needed here; without it some front ends list none at all.
        page.route("**/templates/index*.json", lambda route: route.fulfill(json=[]))
        page.goto(f"http://{server.address}/", wait_until="domcontentloaded", timeout=120_000)
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(2000)
        yield page
        browser.close()
