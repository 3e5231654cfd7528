"""One's own photograph, edited by somebody who has just installed the pack: in a browser, with the mouse."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .canvas_page import CanvasPage
from .conftest import checkout
from .front_end import front_end
from .running_server import Server, running
from .templates import first_edit_opened

pytestmark = pytest.mark.host

SIZE = 768, 512
HOLE = 500, 330, 660, 450  # what is scribbled over, in px of the picture
PROMPT = "a dotted blue donut"
UPLOAD = '[data-node-id="2"] [class*="folder-search"]'
# Where a node is on the screen: its title, or the middle of one of its widgets.
PLACE = """([id, part]) => {
    const {graph, canvas} = window.app
    const node = graph._nodes.find(node => String(node.id) === id), box = canvas.canvas.getBoundingClientRect()
    const widget = node.widgets.find(widget => widget.name === part)
    const x = node.pos[0] + (widget ? node.size[0] / 2 : 60)
    const y = node.pos[1] + (widget ? (widget.last_y ?? widget.y) + 10 : -15)
    const {offset, scale} = canvas.ds
    return [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale]
}"""
DROP = """([x, y, name, data]) => {
    const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0)), transfer = new DataTransfer()
    transfer.items.add(new File([bytes], name, {type: 'image/png'}))
    const canvas = window.app.canvas.canvas
    for (const kind of ['dragenter', 'dragover', 'drop']) canvas.dispatchEvent(new DragEvent(
        kind, {bubbles: true, cancelable: true, clientX: x, clientY: y, dataTransfer: transfer}))
}"""
LOADED = "name => window.app.graph._nodes.find(node => String(node.id) === '2')?.widgets[0].value.includes(name)"


class Hand:
    """Does what a hand does, and counts."""

    def __init__(self, page: Any):
        self.page, self.actions = page, 0

    def act(self, action: Callable[..., Any], *args: Any, **settings: Any) -> None:
        self.actions += 1
        action(*args, **settings)
        self.page.wait_for_timeout(1500)

    def place(self, node: str, part: str = "") -> list[float]:
        at: list[float] = self.page.evaluate(PLACE, [node, part])
        return at


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, bool]]:
    """A server that nobody has used, with the pack and nothing else; and whether its nodes are elements of the page."""
    pytest.importorskip("aiohttp", reason="the host's packages are missing: pip install -e '.[host]'")
    with running(checkout(), tmp_path_factory.mktemp("fresh"), *os.environ.get("COMFYUI_ARGS", "").split()) as server:
        yield server, request.param == "nodes 2.0"


def photograph(path: Path) -> Path:
    """No photograph, but as large as one, with gradients and grain."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    waves = 128 + 60 * np.sin(x / 90 + np.array([0, 1, 2])[:, None, None]) * np.cos(y / 70)
    grain = np.random.default_rng(0).normal(0, 6, (3, SIZE[1], SIZE[0]))
    Image.fromarray((waves + grain).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(path)
    return path


def test_ones_own_photograph_takes_at_most_ten_actions(fresh: tuple[Server, bool], tmp_path: Path) -> None:
    """Node by node: workflow, own picture, mask in the host's editor, prompt, Run; the result is of the picture's size
    and new in the mask alone."""
    server, elements = fresh
    picture = photograph(tmp_path / "photograph.png")
    with front_end(server, elements) as page:
        hand = Hand(page)
        page.keyboard.press("Escape")
        hand.act(page.evaluate, "workflow => window.app.loadGraphData(workflow)", first_edit_opened())
        page.wait_for_function(LOADED, arg="table")
        if elements and not page.locator(UPLOAD).count():
            pytest.skip("the Nodes 2.0 of this front end are none, or an experiment")
        load(hand, picture, elements)
        paint(hand, elements)
        hand.act(prompt_field(page, elements).click, click_count=3)
        hand.act(page.keyboard.type, PROMPT)
        before = set(finished(server))
        hand.act(page.locator("button:visible", has_text="Run").first.click)
        while not (done := [each for each in finished(server) if each not in before]):
            page.wait_for_timeout(500)
    assert hand.actions <= 10
    check(server, server.get(f"/history/{done[0]}")[done[0]], picture)


def open_template(hand: Hand, name: str) -> None:
    """The browser of templates is open when ComfyUI is started for the first time."""
    card = hand.page.get_by_text(name, exact=True).first
    if not card.is_visible():
        hand.act(hand.page.get_by_text("lazydiffusion").first.click)
    hand.act(card.click)


def load(hand: Hand, picture: Path, elements: bool) -> None:
    """By the button and the system's dialogue, or by dropping the file on the node."""
    if elements:
        with hand.page.expect_file_chooser() as dialogue:
            hand.act(hand.page.locator(UPLOAD).click)
        hand.act(dialogue.value.set_files, picture)
    else:
        data = base64.b64encode(picture.read_bytes()).decode()
        hand.act(hand.page.evaluate, DROP, [*hand.place("2"), picture.name, data])
    hand.page.wait_for_function(LOADED, arg=picture.stem)


def paint(hand: Hand, elements: bool) -> None:
    """One stroke to and fro over the hole, in the host's mask editor."""
    page = hand.page
    if elements:
        page.mouse.move(*hand.place("2"))
        page.locator('[data-node-id="2"] [aria-roledescription="image gallery"]').hover()
        hand.act(page.locator('[data-node-id="2"] button[aria-label*="mask" i]').first.click)
    else:
        hand.act(page.mouse.click, *hand.place("2"), button="right")
        hand.act(page.locator(".litemenu-entry", has_text="MaskEditor").first.click)
    save = page.locator("button:visible", has_text="Save").last
    save.wait_for()
    page.wait_for_timeout(1500)
    canvas = page.locator("#maskCanvas, canvas.z-30").last.bounding_box()
    scale = canvas["width"] / SIZE[0]
    left, top, right, bottom = (canvas["xy"[i % 2]] + each * scale for i, each in enumerate(HOLE))

    def stroke() -> None:
        page.mouse.move(left, top)
        page.mouse.down()
        for i, y in enumerate(np.arange(top, bottom, 4)):
            page.mouse.move((left, right)[i % 2], y, steps=6)
        page.mouse.up()

    hand.act(stroke)
    hand.act(save.click)
    page.wait_for_function(LOADED, arg="clipspace")


def prompt_field(page: Any, elements: bool) -> Any:
    if elements:
        return page.locator('[data-node-id="3"] textarea')
    return next(each for each in page.locator("textarea").all() if each.input_value() == PROMPT)


def finished(server: Server) -> list[str]:
    return list(server.get("/history"))


def check(server: Server, history: dict[str, Any], picture: Path) -> None:
    assert history["status"]["status_str"] == "success", history["status"]
    graph = history["prompt"][2]
    assert graph["3"]["inputs"]["text"] == PROMPT
    name = graph["2"]["inputs"]["image"].removesuffix(" [input]")
    alpha = np.asarray(Image.open(server.folder / "input" / name).getchannel("A"))
    painted = alpha < 128
    saved = next(each for output in history["outputs"].values() for each in output.get("images", []))
    result = Image.open(io.BytesIO((server.folder / "output" / saved["subfolder"] / saved["filename"]).read_bytes()))
    assert result.size == SIZE
    new, old = (np.asarray(each.convert("RGB")).astype(int) for each in (result, Image.open(picture)))
    left, top, right, bottom = HOLE
    assert painted[top + 10 : bottom - 10, left:right].mean() > 0.9  # the stroke is where it was made, and nowhere else
    assert painted.mean() < 1.5 * (right - left) * (bottom - top) / (SIZE[0] * SIZE[1])
    assert (new[alpha == 255] == old[alpha == 255]).all()  # the editor itself touches what is half painted
    changed = np.abs(new - old).max(-1) > 40
    assert changed[painted].mean() > 0.1
    # No seam: across the mask's edge colours differ no more than the picture's own, grain and all.
    edge = painted[:, 1:] != painted[:, :-1]
    across = np.abs(np.diff(new, axis=1)).max(-1)[edge].mean()
    assert across < 2 * np.abs(np.diff(old, axis=1)).max(-1)[edge].mean() + 2


def test_ones_own_photograph_takes_five_actions_on_the_canvas(fresh: tuple[Server, bool], tmp_path: Path) -> None:
    """Templates, the first one, own picture, a stroke, Enter: new where it was painted, the same bit by bit outside."""
    server, elements = fresh
    picture = photograph(tmp_path / "photograph.png")
    server.post("/settings/Comfy.TutorialCompleted", False)  # as when ComfyUI is started for the first time
    with front_end(server, elements) as page:
        hand, canvas = Hand(page), CanvasPage(page, server)
        open_template(hand, "01-first-edit")
        canvas.wait("canvas.image")
        if elements and not page.locator("[data-node-id] .lazy-canvas").count():
            pytest.skip("the Nodes 2.0 of this front end are none, or an experiment")
        hand.act(canvas.open, picture)
        hand.act(canvas.stroke, (500, 340), (660, 360), (500, 400), (660, 440))
        painted = canvas.ask("canvas.layers.maskPatch(canvas.document.strokes)")
        hand.actions += 1
        made = canvas.generate()
        old, new = np.asarray(Image.open(picture)).astype(int), canvas.file(made[0], kept=False)
    assert hand.actions <= 5
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(painted["png"]))).getchannel("A"))
    hole = np.zeros(SIZE[::-1], bool)
    hole[painted["y"] :, painted["x"] :][: alpha.shape[0], : alpha.shape[1]] = alpha > 0
    assert (new == old)[~hole].all() and (np.abs(new - old).max(-1) > 40)[hole].mean() > 0.1
