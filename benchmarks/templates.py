"""The pictures of the templates that run with the pack's own model: those that they load, and those beside their names.

    python -m benchmarks.templates --output DIR [--only 02 13]

Draws `lazydiffusion-….png` (for workflows/pictures), runs each template in a real ComfyUI, and joins what goes in and
what comes out to NUMBER-NAME.jpg (for workflows/). The first template's picture is a screenshot of its canvas, which
is not made here. Look at all of them before they are copied.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lazydiff.cli.demo import mugs_on_a_table
from lazydiff.world.backdrop import Backdrop
from lazydiff.world.colours import random_hue
from lazydiff.world.easel import Light
from lazydiff.world.items import Item, PlacedItem
from lazydiff.world.scene import WorldScene, draw_scene

from .comfyui import PACK, find_checkout, serving

SIDE = 512  # px
HOLE = (slice(288, 464), slice(200, 368))
HOLES = {  # x, y, width, height: colour, by which templates tell one hole from another
    (200, 288, 160, 176): (255, 0, 0), (344, 24, 168, 176): (0, 255, 0), (352, 288, 160, 176): (0, 0, 255),
    (24, 24, 184, 184): (96, 96, 96),
}  # fmt: skip
SHAPE = (504, 336)  # of a picture beside a template's name
DARK = (60, 60, 60)  # what a hole is shown as
Pictures = list[Image.Image]


def one_thing(kind: str, colour: str, backdrop: Backdrop, foot: tuple[float, float], support: str) -> Image.Image:
    item = Item(kind, colour, random_hue(np.random.default_rng(0), colour), "plain", seed=8)
    placed = PlacedItem(item, *foot, side=0.36, support=support)
    return Image.fromarray(draw_scene(WorldScene(backdrop, Light(side=-0.8, height=0.8), (placed,)), SIDE))


def loaded_pictures() -> dict[str, Image.Image]:
    """What the templates load, by the end of its name; a hole is transparent."""
    table = draw_scene(mugs_on_a_table(), SIDE)
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[HOLE] = 0
    holes = np.zeros((SIDE, SIDE, 3), np.uint8)
    for (x, y, width, height), colour in HOLES.items():
        place = holes[y : y + height, x : x + width]
        place[:] = np.maximum(place, np.uint8(colour))
    sand = Backdrop("sand", ("yellow",), horizon=0.5, seed=7)
    meadow = Backdrop("meadow", ("blue", "green"), horizon=0.45, seed=11)
    sketch = Image.fromarray(table)
    pen, red = ImageDraw.Draw(sketch), (205, 40, 40)
    pen.ellipse((210, 325, 325, 425), fill=red)
    pen.polygon([(310, 375), (362, 330), (362, 420)], fill=red)
    return {
        "table": Image.fromarray(np.dstack([table, alpha])), "holes": Image.fromarray(holes), "sketch": sketch,
        "fish": one_thing("fish", "blue", sand, (0.5, 0.65), "wall"),
        "house": one_thing("house", "yellow", meadow, (0.45, 0.72), "ground"),
    }  # fmt: skip


def with_dark_hole(picture: Image.Image) -> Image.Image:
    return Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size, DARK), picture.getchannel("A"))


def joined(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of equal cells, each filled with the middle of a picture."""
    whole = Image.new("RGB", SHAPE)
    height = SHAPE[1] // len(rows)
    for y, row in enumerate(rows):
        width = SHAPE[0] // len(row)
        for x, picture in enumerate(row):
            scale = max(width / picture.width, height / picture.height)
            scaled = picture.convert("RGB").resize((round(scale * picture.width), round(scale * picture.height)))
            left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
            whole.paste(scaled.crop((left, top, left + width, top + height)), (x * width, y * height))
    return whole


def layouts(loaded: dict[str, Image.Image]) -> dict[str, Callable[[Pictures, Pictures], Image.Image]]:
    """How what a template saves, and what it previews, is shown, by its number."""
    table = loaded["table"]
    edit = {number: lambda saved, _: joined([[with_dark_hole(table), saved[0]]]) for number in ("06", "07", "13")}
    chain = {number: lambda saved, _: joined([[table, saved[0]]]) for number in ("03", "09")}
    sketch = {number: lambda saved, _: joined([[loaded["sketch"], saved[0]]]) for number in ("05", "08")}
    return edit | chain | sketch | {
        "02": lambda saved, _: joined([saved[0::2], saved[1::2]]),
        "04": lambda saved, _: joined([saved]),
        "10": lambda saved, _: joined([saved]),
        "11": lambda saved, previews: joined([[previews[0], saved[0]]]),
        "12": lambda saved, _: joined([[loaded["house"], saved[0]]]),
    }  # fmt: skip


def run(port: int, folder: Path, prompt: dict[str, Any]) -> tuple[Pictures, Pictures]:
    """What a graph saves, and what it previews. Errors: RuntimeError when it fails."""

    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)) as answer:
            return json.loads(answer.read())

    number = ask("/prompt", {"prompt": prompt})["prompt_id"]
    while number not in (history := ask(f"/history/{number}")):
        time.sleep(0.5)
    if history[number]["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(history[number]["status"]["messages"][-1]))
    found: dict[str, Pictures] = {"output": [], "temp": []}
    for _, output in sorted(history[number]["outputs"].items()):
        for each in output.get("images", []):
            found[each["type"]].append(Image.open(folder / each["type"] / each["subfolder"] / each["filename"]))
    return found["output"], found["temp"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="numbers of templates")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    loaded = loaded_pictures()
    for name, picture in loaded.items():
        picture.save(args.output / f"lazydiffusion-{name}.png", optimize=True)
    with tempfile.TemporaryDirectory() as folder, serving(find_checkout(), Path(folder)) as (port, _):
        for number, shown in sorted(layouts(loaded).items()):
            if args.only is None or number in args.only:
                [path] = (PACK / "workflows" / "api").glob(f"{number}-*.json")
                saved, previews = run(port, Path(folder), json.loads(path.read_text("utf-8")))
                for i, picture in enumerate(saved):
                    picture.save(args.output / f"{path.stem}-{i}.png")
                shown(saved, previews).save(args.output / f"{path.stem}.jpg", quality=88)
                print(path.stem, flush=True)


if __name__ == "__main__":
    main()
