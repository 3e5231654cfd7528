"""The canvas editor by hand: strokes and keys in the host's own front end, and what becomes of pixels."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .canvas_page import BUILD, EDITOR, CanvasPage
from .front_end import READY, front_end
from .running_server import TABLE, Server
from .test_canvas_editor import waves

pytestmark = pytest.mark.host

ACROSS = (20, 40), (70, 44), (24, 52)
STEPS = "node => node.widgets.find(widget => widget.name === 'steps')"


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def tab(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    """A page, with nodes drawn or as elements of the page."""
    elements = request.param == "nodes 2.0"
    with front_end(server, elements) as page:
        page.keyboard.press("Escape")
        page.evaluate(BUILD)
        if elements and not page.locator("[data-node-id] .lazy-canvas").count():
            pytest.skip("the Nodes 2.0 of this front end are none, or an experiment")
        yield page


@pytest.fixture
def canvas(tab: Any, server: Server, tmp_path: Path) -> CanvasPage:
    """A canvas with a picture, and few steps."""
    canvas = CanvasPage(tab, server).build()
    canvas.open(picture(tmp_path / "waves.png"))
    set_steps(canvas, 4)
    return canvas


def picture(path: Path, shift: float = 0) -> Path:
    Image.fromarray(waves(shift=shift)).save(path)
    return path


def set_steps(canvas: CanvasPage, steps: int) -> None:
    canvas.page.evaluate(f"() => {{ ({STEPS})({EDITOR}[{canvas.i}]).value = {steps} }}")


def hole_of(canvas: CanvasPage) -> np.ndarray:
    """bool [H, W], all that a stroke may have touched, and what certainly is inside of it"""
    alpha = canvas.ask(
        "[...canvas.layers.mask.getContext('2d').getImageData(0, 0, 96, 96).data].filter((each, i) => i % 4 === 3)"
    )
    return np.array(alpha).reshape(96, 96) > 0


def test_a_stroke_and_enter_change_the_hole_alone_and_undo_brings_all_back(canvas: CanvasPage) -> None:
    """On the screen and in the files; four variations, all different; twice, and back to the very first pixel."""
    before, loaded = canvas.seen(), waves()
    assert (before == loaded).all()
    for points in (ACROSS, ((30, 70), (80, 80))):
        start = canvas.seen()
        canvas.stroke(*points)
        hole = hole_of(canvas)
        assert 100 < hole.sum() < 3000 and (canvas.seen() != start).any(-1)[hole].mean() > 0.9  # the mask is shown
        made = canvas.generate()
        assert len(set(made)) == 4
        canvas.press("3")
        third = canvas.seen()
        assert (third == canvas.file(made[2], kept=False)).all()
        assert (third == start)[~hole].all() and (third != start).any(-1)[hole].mean() > 0.5
        assert canvas.keep() == made[2]
        assert (canvas.seen() == canvas.file(made[2])).all()
    assert (canvas.file(canvas.value["history"][0]["id"]) == loaded).all()
    canvas.press("Control+z", "Control+z", "Control+z", "Control+z")
    canvas.wait("canvas.document.at === 0 && !canvas.document.strokes.length")
    canvas.wait("canvas.image.src.includes(canvas.shown().id)")
    assert (canvas.seen() == before).all()
    canvas.press("Control+Shift+z", "Control+y", "Control+y", "Control+y")
    canvas.wait("canvas.document.at === 2 && canvas.image.src.includes(canvas.shown().id)")
    assert (canvas.seen() == third).all()


def test_the_hole_is_seen_while_it_is_sampled_and_esc_leaves_the_canvas(canvas: CanvasPage) -> None:
    before, value = canvas.seen(), canvas.value
    canvas.stroke(*ACROSS)
    hole = hole_of(canvas)
    set_steps(canvas, 900)
    canvas.press("Enter")
    canvas.wait("canvas.generation.preview")
    sampled = canvas.seen()
    assert (sampled == before)[~hole].all() and (sampled != before).any(-1)[hole].mean() > 0.5
    canvas.press("Escape")
    canvas.wait("!canvas.generation.run")
    assert "the canvas is as it was" in canvas.word
    assert canvas.value["history"] == value["history"]
    canvas.press("Control+z")
    assert (canvas.seen() == before).all()
    set_steps(canvas, 4)
    canvas.press("Control+Shift+z")
    assert len(canvas.generate()) == 4
    canvas.press("x")
    canvas.wait("!canvas.generation.choice")


def test_a_reload_keeps_the_canvas(canvas: CanvasPage) -> None:
    canvas.stroke(*ACROSS)
    canvas.generate()
    canvas.keep()
    canvas.stroke((10, 10), (30, 12))
    value, seen = canvas.value, canvas.seen()
    canvas.page.wait_for_timeout(2000)  # the front end saves its drafts now and then
    canvas.page.reload(wait_until="domcontentloaded")
    canvas.page.wait_for_function(READY, timeout=120_000)
    canvas.wait("canvas.image")
    assert canvas.value == value
    assert (canvas.seen() == seen).all()
    canvas.part.locator("canvas.lazy-canvas-stage").click(position={"x": 5, "y": 5})
    canvas.press("Control+z", "Control+z", "Control+z")
    canvas.wait("canvas.document.at === 0 && !canvas.document.strokes.length")


def test_two_tabs_do_not_mix(canvas: CanvasPage, server: Server, tmp_path: Path) -> None:
    """Both generate at once; each gets its own, and neither can keep the other's."""
    page = canvas.page.context.browser.new_page(viewport={"width": 1600, "height": 1000})
    page.goto(f"http://{server.address}/", wait_until="domcontentloaded", timeout=120_000)
    page.wait_for_function(READY, timeout=120_000)
    page.wait_for_timeout(1500)
    other = CanvasPage(page, server).build()
    other.open(picture(tmp_path / "other.png", shift=2))
    set_steps(other, 4)
    both = canvas, other
    for each in both:
        each.stroke(*ACROSS)
    for each in both:
        each.press("Enter")
    for each in both:
        each.wait("canvas.generation.choice")
    made = [each.ask("canvas.generation.choice.made.map(each => each.id)") for each in both]
    assert len({*made[0], *made[1]}) == 8
    assert "another tab" in server.post(
        "/lazydiffusion/canvas/keep", {"id": made[0][0], "tab": page.evaluate("sessionStorage['lazydiffusion.tab']")}
    )["error"]
    for each, loaded, ids in zip(both, (waves(), waves(shift=2)), made, strict=True):
        hole = hole_of(each)
        assert each.keep() == ids[0]
        assert (each.file(ids[0]) == loaded)[~hole].all()
    page.close()


def test_two_canvases_in_one_graph(canvas: CanvasPage, server: Server) -> None:
    """A copied node has the same picture, and from then on a canvas of its own."""
    canvas.page.evaluate(f"""async () => {{
        const {{canvas, graph}} = window.app, [node] = {EDITOR}
        canvas.selectNodes([node])
        canvas.copyToClipboard([node])
        canvas.pasteFromClipboard({{connectInputs: true}})
        const copy = {EDITOR}.at(-1), [loader] = graph._nodes
        copy.pos = [node.pos[0] + 620, node.pos[1]]
        for (const socket of [0, 1, 2]) loader.connect(socket, copy, socket)
        Object.assign(canvas.ds, {{scale: .7, offset: [100, 60]}})
        canvas.setDirty(true, true)
        await new Promise(done => setTimeout(done, 1500))
    }}""")
    copy = CanvasPage(canvas.page, server, 1)
    copy.wait("canvas.image")
    assert (copy.seen() == waves()).all()
    copy.stroke(*ACROSS)
    copy.generate()
    kept = copy.keep()
    assert canvas.value["at"] == 0 and copy.value["history"][-1]["id"] == kept
    assert (canvas.seen() == waves()).all()


def test_keys_are_the_canvass_while_it_has_the_focus_and_at_no_other_time(canvas: CanvasPage) -> None:
    canvas.stroke(*ACROSS)
    size = canvas.ask("canvas.size")
    canvas.press("]")
    assert canvas.ask("canvas.size") > size
    canvas.press("[", "[")
    assert canvas.ask("canvas.size") < size
    nodes = canvas.page.evaluate("() => window.app.graph._nodes.length")
    canvas.press("Delete", "Backspace")  # the host would remove the node
    assert canvas.page.evaluate("() => window.app.graph._nodes.length") == nodes
    assert canvas.value["strokes"] == []
    canvas.press("Control+z")
    assert len(canvas.value["strokes"]) == 1 and canvas.page.evaluate("() => window.app.graph._nodes.length") == nodes
    canvas.page.mouse.click(1300, 850)  # the graph
    canvas.press("]", "Enter", "b")
    assert canvas.ask("[Boolean(canvas.generation.run), canvas.tool]") == [False, "brush"]
    assert canvas.ask("canvas.size") < size


def test_a_prompt_is_typed_and_enter_generates(canvas: CanvasPage) -> None:
    canvas.stroke(*ACROSS)
    canvas.part.get_by_label("Prompt").click()
    canvas.page.keyboard.type("a dotted blue donut [k] x")
    assert canvas.value["prompt"] == "a dotted blue donut [k] x"
    assert len(canvas.generate()) == 4


def test_everything_by_keys(canvas: CanvasPage) -> None:
    """Without a pointer: the brush moves, paints a dab, generates, chooses and keeps."""
    canvas.ask("canvas.keyboard.focus()")
    canvas.press("ArrowRight", "ArrowDown", " ")
    assert [len(canvas.value["strokes"]), hole_of(canvas)[50, 50]] == [1, True]
    made = canvas.generate()
    canvas.press("ArrowRight")
    assert canvas.keep() == made[1]


def test_the_eraser_and_a_pens_pressure(canvas: CanvasPage) -> None:
    canvas.press("b")
    wire = canvas.page.context.new_cdp_session(canvas.page)
    for y, force in ((30, 1.0), (60, 0.1)):
        points = canvas.places(*((x, y) for x in range(20, 80, 5)))
        for i, (x, at) in enumerate(points):
            kind = "mousePressed" if i == 0 else "mouseReleased" if i == len(points) - 1 else "mouseMoved"
            wire.send("Input.dispatchMouseEvent", {
                "type": kind, "x": x, "y": at, "button": "left", "buttons": 1, "clickCount": 1, "pointerType": "pen",
                "force": force,
            })  # fmt: skip
    strong, weak = hole_of(canvas)[22:38].sum(), hole_of(canvas)[52:68].sum()
    assert strong > 1.5 * weak > 0
    canvas.press("e")
    canvas.stroke((20, 30), (80, 30))
    assert hole_of(canvas)[22:38].sum() < strong / 4


def test_a_canvas_is_widened_by_dragging_its_edge(canvas: CanvasPage) -> None:
    (left, y), (right, _) = canvas.places((98, 48), (130, 48))
    canvas.page.mouse.move(left, y)
    canvas.page.mouse.down()
    canvas.page.mouse.move(right, y, steps=5)
    canvas.page.mouse.up()
    canvas.wait("canvas.shown().width > 96 && canvas.image.width > 96")
    assert canvas.ask("canvas.shown().width") == 128
    made = canvas.generate()
    new = canvas.file(made[0], kept=False)
    assert (new[:, :88] == waves()[:, :88]).all() and (new[:, 100:] != waves()[:, 95:]).any(-1).mean() > 0.5
    canvas.press("Control+z")  # the variations, and then what was added
    assert canvas.ask("[canvas.generation.choice ?? 0, canvas.shown().width]") == [0, 128]
    canvas.press("Control+z")
    canvas.wait("canvas.shown().width === 96 && canvas.image.width === 96")
    assert (canvas.seen() == waves()).all()


def test_a_sketch_gives_the_hole_its_colours_and_hold_to_compare_shows_what_was(canvas: CanvasPage) -> None:
    canvas.press("s")
    canvas.stroke(*ACROSS)
    assert canvas.value["strokes"][0]["colour"] == "#e04030"
    canvas.generate()
    chosen = canvas.seen()
    assert (chosen != waves()).any()
    canvas.page.keyboard.down("c")
    assert (canvas.seen() == waves()).all()
    canvas.page.keyboard.up("c")
    assert (canvas.seen() == chosen).all()
    canvas.press("b")


def test_full_window_and_back(canvas: CanvasPage) -> None:
    canvas.stroke(*ACROSS)
    small = canvas.part.bounding_box()
    canvas.press("f")
    canvas.page.wait_for_timeout(300)
    large = canvas.part.bounding_box()
    assert (large["width"], large["height"]) == (1600, 1000) and small["width"] < 800
    canvas.stroke((30, 70), (80, 75))
    assert len(canvas.value["strokes"]) == 2
    canvas.press("Escape")
    canvas.page.wait_for_timeout(300)
    assert canvas.part.bounding_box() == small


def test_what_is_exported_opens_where_its_picture_is_not(canvas: CanvasPage, tmp_path: Path) -> None:
    """The PNG is the picture, bit by bit, with the workflow inside; a workflow alone says what is missing."""
    canvas.stroke(*ACROSS)
    canvas.generate()
    id = canvas.keep()
    kept = canvas.file(id)
    with canvas.page.expect_download() as download:
        canvas.part.get_by_label("Export").click()
    exported = tmp_path / "canvas.png"
    download.value.save_as(exported)
    with Image.open(exported) as opened:
        assert (np.asarray(opened) == kept).all()
        enclosing = json.loads(opened.info["workflow"])
    alone = canvas.page.evaluate("async () => (await window.app.graphToPrompt()).workflow")
    saved = next(node for node in alone["nodes"] if node["type"] == "LazyCanvasEditor")
    assert len(json.dumps(saved["widgets_values"])) < 2000
    (canvas.server.folder / "input" / "lazydiffusion" / f"{id}.png").unlink()
    canvas.page.evaluate("workflow => window.app.loadGraphData(workflow)", alone)
    canvas.wait("canvas.panel.status.classList.contains('bad')")
    assert "is not on this server" in canvas.word
    canvas.page.evaluate("workflow => window.app.loadGraphData(workflow)", enclosing)
    canvas.wait(f"canvas.image?.src.includes('{id}')")
    assert (canvas.seen() == kept).all() and (canvas.file(id) == kept).all()
    assert "pictures" not in canvas.value


def test_a_canvas_that_is_not_connected_says_so(canvas: CanvasPage) -> None:
    canvas.page.evaluate(f"() => {EDITOR}[0].disconnectInput(1)")
    canvas.stroke(*ACROSS)
    canvas.press("Enter")
    canvas.wait("canvas.panel.status.classList.contains('bad')")
    assert "connect clip" in canvas.word


def test_a_server_that_does_not_answer_leaves_nothing_stuck(canvas: CanvasPage) -> None:
    """The page says so, and goes on when it is there again."""
    canvas.stroke(*ACROSS)
    for path in ("**/prompt", "**/queue"):
        canvas.page.route(path, lambda route: route.abort())
    canvas.press("Enter")
    canvas.wait("!canvas.generation.run && canvas.panel.status.classList.contains('bad')")
    assert "does not answer" in canvas.word
    canvas.page.unroute("**/prompt")
    set_steps(canvas, 300)
    canvas.press("Enter")
    canvas.wait("canvas.generation.preview")
    canvas.press("Escape")
    canvas.wait("!canvas.generation.run")
    assert "does not answer" in canvas.word
    canvas.page.unroute("**/queue")
    canvas.server.post("/interrupt", {})
    set_steps(canvas, 4)
    assert len(canvas.generate()) == 4


def test_a_run_that_is_over_before_the_server_has_answered_is_not_missed(canvas: CanvasPage) -> None:
    """The answer to the request comes three seconds after all that is told of the run."""

    def late(route: Any) -> None:
        answer = route.fetch()
        time.sleep(3)
        route.fulfill(response=answer)

    canvas.stroke(*ACROSS)
    canvas.page.route("**/prompt", late)
    assert len(set(canvas.generate())) == 4
    canvas.page.unroute("**/prompt")


def test_a_connected_picture_comes_with_run(canvas: CanvasPage, server: Server) -> None:
    canvas.build()
    canvas.page.evaluate(f"""async () => {{
        const load = window.LiteGraph.createNode('LoadImage'), [editor] = {EDITOR}
        window.app.graph.add(load)
        load.pos = [-360, 300]
        load.widgets[0].value = '{TABLE}'
        load.connect(0, editor, editor.inputs.findIndex(input => input.name === 'image'))
        await window.app.queuePrompt(0)
    }}""")
    canvas.wait("canvas.image")
    with Image.open(server.folder / "input" / TABLE) as table:
        assert (canvas.seen() == np.asarray(table.convert("RGB"))).all()


def test_the_hosts_own_undo_takes_a_stroke_back_and_the_canvas_works_on(canvas: CanvasPage) -> None:
    """With the focus on the graph: the host opens the workflow as it was, with nodes of the same numbers."""
    canvas.page.mouse.click(1300, 850)
    canvas.stroke(*ACROSS)
    canvas.page.mouse.click(1300, 850)
    canvas.press("Control+z")
    canvas.wait("!canvas.document.strokes.length && canvas.image")
    canvas.page.wait_for_timeout(1000)
    assert canvas.page.locator(".lazy-canvas").count() == 1
    assert (canvas.seen() == waves()).all()
    canvas.stroke(*ACROSS)
    assert len(canvas.value["strokes"]) == 1
    assert len(canvas.generate()) == 4
