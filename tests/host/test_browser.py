"""Every template in the host's own front end: it opens, misses no node, and is its API twin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from .running_server import PACK, Server

pytestmark = pytest.mark.host

WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types['LazySample']"
OPEN = """async workflow => {
    await window.app.loadGraphData(workflow, true, true)
    await new Promise(done => setTimeout(done, 500))
    const known = window.LiteGraph.registered_node_types
    return {
        prompt: (await window.app.graphToPrompt()).output,
        missing: window.app.graph._nodes.map(node => node.type).filter(type => !(type in known)),
        dom: document.querySelectorAll('[data-node-id]').length,
    }
}"""


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def page(request: pytest.FixtureRequest, server: Server) -> Iterator[tuple[Any, bool]]:
    """The front end, and whether it draws nodes as elements of the page."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(f"http://{server.address}/", wait_until="domcontentloaded", timeout=120_000)
        page.wait_for_function(READY, timeout=120_000)
        elements = request.param == "nodes 2.0"
        setting = "async on => await window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
        page.evaluate(setting, elements)
        page.wait_for_timeout(2000)
        yield page, elements
        browser.close()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_opens_and_is_its_api_twin(page: tuple[Any, bool], name: str) -> None:
    tab, elements = page
    shown = tab.evaluate(OPEN, json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8")))
    twin = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
    assert shown["missing"] == []
    prompt = {number: {key: each[key] for key in ("class_type", "inputs")} for number, each in shown["prompt"].items()}
    assert prompt == twin
    if elements:
        assert shown["dom"], "this front end has no Nodes 2.0"


def test_workflow_of_an_older_version_opens(page: tuple[Any, bool]) -> None:
    """Inputs that nodes have been given since then take their defaults, and nothing else moves."""
    tab, _ = page
    workflow = json.loads((PACK / "workflows" / "1-first-edit.json").read_text("utf-8"))
    encode = next(node for node in workflow["nodes"] if node["type"] == "LazyContextEncode")
    first = ("model", "vae", "image", "mask", "grow", "feather")  # all that 0.1.0 had
    encode["inputs"] = [each for each in encode["inputs"] if each["name"] in first]
    encode["widgets_values"], _ = encode["widgets_values"][:2], encode.pop("widgets_values_named", None)
    shown = tab.evaluate(OPEN, workflow)
    twin = json.loads((PACK / "workflows" / "api" / "1-first-edit.json").read_text("utf-8"))
    assert {number: each["inputs"] for number, each in shown["prompt"].items()} == {
        number: each["inputs"] for number, each in twin.items()
    }
