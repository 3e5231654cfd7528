"""Every template in the host's own front end: it opens, misses no node, and is its API twin; and our own scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .front_end import READY, front_end
from .running_server import Server
from .templates import NAMES, first_edit, first_edit_opened, template, workflow

pytestmark = pytest.mark.host

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
INFO = "window.app.graph?._nodes.find(node => node.type === 'LazyContextInfo')"
SHOWN = f"() => {INFO}?.widgets?.[0].value"
HAS_TEXT = f"() => {INFO}?.widgets?.[0].value.startsWith('canvas: 96×96 px\\nhole: 24 of 144 tokens')"


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def page(request: pytest.FixtureRequest, server: Server) -> Iterator[tuple[Any, bool]]:
    """The front end, and whether it draws nodes as elements of the page."""
    elements = request.param == "nodes 2.0"
    with front_end(server, elements) as page:
        yield page, elements


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_and_is_its_api_twin(page: tuple[Any, bool], name: str) -> None:
    tab, elements = page
    shown = tab.evaluate(OPEN, template(name))
    assert shown["missing"] == []
    prompt = {number: {key: each[key] for key in ("class_type", "inputs")} for number, each in shown["prompt"].items()}
    assert prompt == workflow(name)
    if elements and not shown["dom"]:
        pytest.skip("this front end has no Nodes 2.0")


def test_workflow_of_an_older_version_opens(page: tuple[Any, bool]) -> None:
    """Inputs that nodes have been given since then take their defaults, and nothing else moves."""
    tab, _ = page
    saved = first_edit_opened()
    encode = next(node for node in saved["nodes"] if node["type"] == "LazyContextEncode")
    first = ("model", "vae", "image", "mask", "grow", "feather")  # all that 0.1.0 had
    encode["inputs"] = [each for each in encode["inputs"] if each["name"] in first]
    encode["widgets_values"], _ = encode["widgets_values"][:2], encode.pop("widgets_values_named", None)
    shown = tab.evaluate(OPEN, saved)
    assert {number: each["inputs"] for number, each in shown["prompt"].items()} == {
        number: each["inputs"] for number, each in first_edit().items()
    }


def test_templates_are_listed_by_their_numbers(page: tuple[Any, bool]) -> None:
    """The server lists them as its file system does."""
    tab, _ = page
    listed = tab.evaluate("async () => (await window.comfyAPI.api.api.getWorkflowTemplates()).lazydiffusion")
    assert listed == NAMES


def test_context_info_keeps_its_text(page: tuple[Any, bool]) -> None:
    """After Run line by line, after a reload at once, and again from the cache; never in the prompt."""
    tab, _ = page
    saved = first_edit_opened()
    sample = next(node for node in saved["nodes"] if node["type"] == "LazySample")
    sample["widgets_values"] = ["fixed" if each == "randomize" else each for each in sample["widgets_values"]]
    tab.evaluate(OPEN, saved)
    assert tab.evaluate(SHOWN) == ""
    run = "async () => { await window.app.queuePrompt(0) }"
    tab.evaluate(run)
    tab.wait_for_function(HAS_TEXT, timeout=60_000)
    assert tab.evaluate(f"() => {INFO}.serialize().widgets_values ?? []") == []
    tab.wait_for_timeout(2000)  # the front end saves its drafts now and then
    tab.reload(wait_until="domcontentloaded")
    tab.wait_for_function(READY, timeout=120_000)
    tab.wait_for_function(HAS_TEXT, timeout=10_000)
    tab.evaluate(f"() => {{ const info = {INFO}; info.widgets[0].value = '' }}")
    tab.evaluate(run)
    tab.wait_for_function(HAS_TEXT, timeout=60_000)
    prompt = tab.evaluate("async () => (await window.app.graphToPrompt()).output")
    info = next(node for node in prompt.values() if node["class_type"] == "LazyContextInfo")
    assert set(info["inputs"]) == {"context"}
