"""The canvas editor in a browser against the command line, and what a hundred strokes leave in memory.

    python -m benchmarks.canvas --output DIR [--quick]

Needs a ComfyUI checkout (COMFYUI_PATH, or ~/comfy/ComfyUI), playwright and Chromium. Template 1 with one variation: a
stroke by the mouse, Enter, K. Seconds are from the release of Enter, as the page counts them: to the first preview that
it has drawn, and to the variation on the canvas. The command line makes the same edit of the same picture, with its
start. Of a hundred strokes that are kept, the last ten are timed against the first ten. Memory is what the server's
process and the page's process hold (their resident set) after the last stroke, above what they held after the first
ten; and what as many runs of two of the host's own nodes leave in a page, for the front end keeps something of every
run. Writes `canvas.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .comfyui import PACK, find_checkout, serving
from .harness import Harness, arguments

TEMPLATE = PACK / "workflows" / "01-first-edit.json"
PICTURE = PACK / "workflows" / "pictures" / "lazydiffusion-table.png"
STROKES, QUICK_STROKES, WARM = 100, 3, 10
ACROSS = (0.3, 0.45), (0.7, 0.5), (0.35, 0.6)  # of the picture's sides
EDITOR = "window.app.graph._nodes.find(node => node.type === 'LazyCanvasEditor').lazyCanvas"
# Notes when Enter is released, when the first preview is on the screen (the variation itself, if it was as soon), and
# when the variation is.
WATCH = """() => {
    const canvas = %s, times = window.times = {}
    addEventListener('keyup', function released({key}) {
        if (key !== 'Enter') return
        removeEventListener('keyup', released, true)
        times.enter = performance.now()
    }, true)
    const look = () => {
        const {preview, choice} = canvas.generation
        if (times.enter && (preview || choice)) times.preview ??= performance.now()
        if (times.enter && choice) times.finished ??= performance.now()
        if (!times.finished) requestAnimationFrame(look)
    }
    look()
}""" % EDITOR  # noqa: UP031  # braces
PLACE = """points => {
    const {stage} = %s, size = %s.shown(), box = stage.canvas.getBoundingClientRect()
    const by = box.width / stage.canvas.clientWidth
    return points.map(([x, y]) => [box.left + (x * size.width * stage.view.scale + stage.view.x) * by,
        box.top + (y * size.height * stage.view.scale + stage.view.y) * by])
}""" % (EDITOR, EDITOR)  # noqa: UP031


PLAIN = """() => {
    const {app, LiteGraph, comfyAPI} = window
    app.graph.clear()
    const [empty, preview] = ['EmptyImage', 'PreviewImage'].map(type => LiteGraph.createNode(type))
    for (const node of [empty, preview]) app.graph.add(node)
    empty.connect(0, preview, 0)
    const set = (name, value) => { empty.widgets.find(widget => widget.name === name).value = value }
    set('width', 96), set('height', 96)
    window.plain = run => new Promise(done => {
        comfyAPI.api.api.addEventListener('execution_success', () => setTimeout(done, 500), {once: true})
        set('color', run)
        app.queuePrompt(0)
    })
}"""


class FrontEnd:
    """A page of the host's."""

    def __init__(self, browser: Any, address: str):
        self.browser = browser
        self.page = browser.new_page(viewport={"width": 1600, "height": 1000})
        self.page.goto(address, wait_until="domcontentloaded", timeout=120_000)
        self.page.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types.LazySample")
        self.page.wait_for_timeout(2000)
        self.page.keyboard.press("Escape")

    def memory(self) -> float:
        """MB of the largest process that draws pages: this one's."""
        self.page.context.new_cdp_session(self.page).send("HeapProfiler.collectGarbage")
        told = self.browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
        return max(resident(each["id"]) for each in told if each["type"] == "renderer")

    def growth_of_plain_runs(self, runs: int, warm: int) -> float:
        """MB that runs of two nodes of the host's leave here, after the first ones."""
        self.page.evaluate(PLAIN)
        for run in range(runs):
            self.page.evaluate("run => window.plain(run)", run)
            if run + 1 == warm:
                before = self.memory()
        return self.memory() - before


class Painter(FrontEnd):
    """Template 1 in a browser, and a hand."""

    def __init__(self, browser: Any, address: str):
        super().__init__(browser, address)
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", json.loads(TEMPLATE.read_text("utf-8")))
        self.page.wait_for_function(f"() => {EDITOR}.image")
        self.page.wait_for_timeout(1000)

    def ask(self, what: str) -> Any:
        return self.page.evaluate(f"() => {{ const canvas = {EDITOR}; return {what} }}")

    def begin_again(self) -> None:
        """The canvas as it was opened."""
        self.ask("canvas.travel(line => ({past: [], present: {...line.present, at: 0, strokes: []}, future: []}))")
        self.page.wait_for_timeout(200)

    def edit(self, seed: int, shift: tuple[float, float] = (0, 0)) -> dict[str, float]:
        """Seconds to the first preview and to the variation, which is kept."""
        self.page.evaluate(f"() => {EDITOR}.set({{seed: {seed}, fixed: true, variations: 1}})")
        first, *others = self.page.evaluate(PLACE, [[x + shift[0], y + shift[1]] for x, y in ACROSS])
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for each in others:
            self.page.mouse.move(*each, steps=8)
        self.page.mouse.up()
        self.page.evaluate(WATCH)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("() => window.times.finished", timeout=120_000)
        times = self.page.evaluate("() => window.times")
        at = self.ask("canvas.document.at")
        self.page.keyboard.press("k")
        self.page.wait_for_function(f"() => {EDITOR}.document.at === {at + 1}")
        return {name: (times[name] - times["enter"]) / 1000 for name in ("preview", "finished")}


def resident(process: int) -> float:
    """MB that a process holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def command_line(folder: Path, seed: int, prompt: str) -> float:
    """Seconds of the same edit by `python -m lazydiff edit`, from start to file."""
    picture = Image.open(PICTURE)
    mask = np.zeros(picture.size[::-1], np.uint8)
    (left, top), (right, bottom) = ([part * side for part, side in zip(point, picture.size, strict=True)]
                                    for point in (np.min(ACROSS, 0), np.max(ACROSS, 0)))  # fmt: skip
    mask[round(top) : round(bottom), round(left) : round(right)] = 255
    paths = [folder / f"{name}.png" for name in ("image", "mask")]
    picture.convert("RGB").save(paths[0])
    Image.fromarray(mask).save(paths[1])
    command = [sys.executable, "-m", "lazydiff", "edit", "--image", str(paths[0]), "--mask", str(paths[1]), "--prompt",
               prompt, "--seed", str(seed), "--output", str(folder)]  # fmt: skip
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=PACK, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    harness = Harness.of(arguments(__doc__, f"{QUICK_STROKES} strokes in all", repeat=9).parse_args(argv))
    from playwright.sync_api import sync_playwright

    strokes, warm = (QUICK_STROKES, 1) if harness.quick else (STROKES, WARM)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    arguments_of_host = "--use-pytorch-cross-attention", *os.environ.get("COMFYUI_ARGS", "").split()
    with (
        tempfile.TemporaryDirectory() as name,
        serving(find_checkout(), Path(name), *arguments_of_host) as (port, host),
        sync_playwright() as driver,
    ):
        address, process = f"http://127.0.0.1:{port}/", host.pid
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        painter = Painter(browser, address)
        prompt = painter.ask("canvas.settings.prompt")
        painter.edit(0)  # loads the model
        times, lines = [], []
        for turn in range(harness.repeat):
            painter.begin_again()
            times.append(painter.edit(turn + 1))
            lines.append(command_line(Path(name), turn + 1, prompt))
        rng = np.random.default_rng(0)
        held, finished_in = [], []
        for stroke in range(strokes):
            finished_in.append(painter.edit(stroke, tuple(rng.uniform(-0.25, 0.25, 2)))["finished"])
            if stroke + 1 in (warm, strokes):
                held.append((resident(process), painter.memory()))
        value = len(painter.ask("canvas.value"))
        painter.page.close()
        plain = FrontEnd(browser, address).growth_of_plain_runs(strokes, warm)
        browser.close()
    preview, finished = (statistics.median(each[name] for each in times) for name in ("preview", "finished"))
    cli = statistics.median(lines)
    figures = {
        "first_preview_s": round(preview, 3), "finished_over_cli": round(finished / cli, 3),
        "last_over_first_strokes": round(
            statistics.median(finished_in[-warm:]) / statistics.median(finished_in[:warm]), 3
        ),
        "server_growth_mb": round(held[1][0] - held[0][0], 1), "page_growth_mb": round(held[1][1] - held[0][1], 1),
    }  # fmt: skip
    harness.write(
        "canvas", figures, finished_s=round(finished, 3), cli_s=round(cli, 3), strokes=strokes, warm=warm,
        page_growth_of_plain_runs_mb=round(plain, 1), value_bytes=value, server_mb=round(held[1][0]),
        page_mb=round(held[1][1]), times=times, cli_times=lines,
    )  # fmt: skip


if __name__ == "__main__":
    main()
