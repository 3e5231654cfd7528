"""The canvas editor in a browser, and the hands that use it: everything goes through pointer and keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .running_server import Server

BUILD = """async () => {
    const {app, LiteGraph} = window
    app.graph.clear()
    const [loader, editor] = ['LazyCheckpointLoader', 'LazyCanvasEditor'].map(type => LiteGraph.createNode(type))
    loader.pos = [-360, 80]
    editor.pos = [100, 80]
    for (const node of [loader, editor]) app.graph.add(node)
    for (const socket of [0, 1, 2]) loader.connect(socket, editor, socket)
    Object.assign(app.canvas.ds, {scale: 1, offset: [60, 20]})
    app.canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 1000))
}"""
EDITOR = "window.app.graph._nodes.filter(node => node.type === 'LazyCanvasEditor')"
# Where pixels of the picture are on the screen.
PLACE = """([i, points]) => {
    const {stage} = %s[i].lazyCanvas, box = stage.canvas.getBoundingClientRect()
    const by = box.width / stage.canvas.clientWidth
    return points.map(([x, y]) => [box.left + (x * stage.view.scale + stage.view.x) * by,
        box.top + (y * stage.view.scale + stage.view.y) * by])
}""" % EDITOR  # noqa: UP031  # braces
# The picture and what covers it, in the colours that are on the screen, one for each pixel of the picture.
SEEN = """async i => {
    const {stage, shown} = %s[i].lazyCanvas, size = %s[i].lazyCanvas.shown()
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
    const by = stage.canvas.width / stage.canvas.clientWidth, {data, width} = stage.canvas.getContext('2d')
        .getImageData(0, 0, stage.canvas.width, stage.canvas.height)
    const colours = []
    for (let y = 0; y < size.height; y++) for (let x = 0; x < size.width; x++) {
        const [sx, sy] = [x, y].map((at, k) => Math.floor(((at + .5) * stage.view.scale + stage.view['xy'[k]]) * by))
        colours.push(...data.slice((sy * width + sx) * 4, (sy * width + sx) * 4 + 3))
    }
    return [size.height, size.width, colours]
}""" % (EDITOR, EDITOR)  # noqa: UP031


class CanvasPage:
    """The i-th canvas of a page's graph."""

    def __init__(self, page: Any, server: Server, i: int = 0):
        self.page, self.server, self.i = page, server, i

    def build(self) -> CanvasPage:
        self.page.keyboard.press("Escape")
        self.page.evaluate(BUILD)
        self.page.wait_for_function(f"() => {EDITOR}.length && {EDITOR}[0].lazyCanvas.element.isConnected")
        return self

    def ask(self, what: str) -> Any:
        return self.page.evaluate(f"() => {{ const canvas = {EDITOR}[{self.i}].lazyCanvas; return {what} }}")

    def wait(self, what: str, seconds: float = 60) -> None:
        self.page.wait_for_function(
            f"() => {{ const canvas = {EDITOR}[{self.i}]?.lazyCanvas; return canvas && ({what}) }}",
            timeout=seconds * 1000,
        )

    @property
    def part(self) -> Any:
        """The canvas as an element of the page."""
        return self.page.locator(".lazy-canvas").nth(self.i)

    @property
    def value(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.ask("canvas.value"))
        return value

    @property
    def word(self) -> str:
        return str(self.part.locator(".lazy-canvas-status").inner_text())

    def open(self, path: Path) -> None:
        """By the button and the system's dialogue."""
        before = self.ask("canvas.shown()?.id ?? null")
        with self.page.expect_file_chooser() as dialogue:
            self.part.get_by_label("Open a picture").click()
        dialogue.value.set_files(path)
        self.wait(f"canvas.shown() && canvas.shown().id !== {json.dumps(before)} && canvas.image")

    def places(self, *points: tuple[float, float]) -> list[list[float]]:
        found: list[list[float]] = self.page.evaluate(PLACE, [self.i, points])
        return found

    def stroke(self, *points: tuple[float, float]) -> None:
        """From point to point, in pixels of the picture."""
        first, *others = self.places(*points)
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for each in others:
            self.page.mouse.move(*each, steps=8)
        self.page.mouse.up()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def generate(self) -> list[str]:
        """Enter, until there is something to choose from; the ids of the variations."""
        self.press("Enter")
        self.wait("canvas.generation.run || canvas.generation.choice")
        self.wait("!canvas.generation.run")
        assert self.ask("Boolean(canvas.generation.choice)"), self.word
        made: list[str] = self.ask("canvas.generation.choice.made.map(each => each.id)")
        return made

    def keep(self) -> str:
        at = self.value["at"]
        self.press("k")
        self.wait(f"canvas.document.at === {at + 1} && canvas.image.src.includes(canvas.shown().id)")
        return str(self.value["history"][-1]["id"])

    def seen(self) -> np.ndarray:
        """uint8 [H, W, 3], from the screen."""
        self.page.mouse.move(2, 400)  # the brush is no part of the picture
        height, width, colours = self.page.evaluate(SEEN, self.i)
        return np.array(colours, np.uint8).reshape(height, width, 3)

    def file(self, id: str, kept: bool = True) -> np.ndarray:
        folder = self.server.folder / ("input" if kept else "temp") / "lazydiffusion"
        return np.asarray(Image.open(folder / f"{id}.png"))
