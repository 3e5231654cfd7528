"""The canvas editor's server half, asked as its page asks."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import checkout
from .running_server import Execution, Server, running
from .templates import Prompt

pytestmark = pytest.mark.host

PATH = "/lazydiffusion/canvas"
TAB, OTHER = "a" * 32, "b" * 32
HOLE = slice(30, 60), slice(20, 70)


def upload(server: Server, data: bytes, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(f"http://{server.address}{PATH}/picture", data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def waves(height: int = 96, width: int = 96, shift: float = 0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    colours = [127 + 100 * np.sin(x / 9 + i + shift) * np.cos(y / 11) for i in range(3)]
    return np.stack(colours, -1).astype(np.uint8)


def patch(colour: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """What a stroke over the hole sends: white for a mask, or a colour."""
    rows, columns = (part.stop - part.start for part in HOLE)
    pixels = np.full((rows, columns, 4), 255, np.uint8)
    pixels[..., :3] = colour or (255, 255, 255)
    return {"x": HOLE[1].start, "y": HOLE[0].start, "png": base64.b64encode(png(pixels)).decode()}


def graph(value: dict[str, Any] | str, **widgets: Any) -> Prompt:
    text = value if isinstance(value, str) else json.dumps(value)
    return {
        "1": {"class_type": "LazyCheckpointLoader", "inputs": {"checkpoint": "lazydiffusion-small.safetensors"}},
        "2": {"class_type": "LazyCanvasEditor", "inputs": {
            "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "canvas": text, "steps": 3, "cfg": 1.0,
            "sampler": "ancestral (as trained)", "scheduler": "simple", "denoise": 1.0, "sketch_denoise": 0.7,
            "negative": "", "grow": 0, "feather": 0, "blend": "poisson", **widgets,
        }},
    }  # fmt: skip


def request(picture: str, name: str = "one", **more: Any) -> dict[str, Any]:
    value = {"canvas": picture, "mask": patch(), "prompt": "a dotted blue donut", "tab": TAB, "name": name, "seed": 3,
             "variations": 4}  # fmt: skip
    return value | more


def told(execution: Execution) -> dict[str, Any]:
    """What the node has told the page."""
    return next(data["output"] for kind, data in execution.events if kind == "executed" and data["node"] == "2")


def pixels_of(server: Server, id: str, kept: bool) -> np.ndarray:
    return np.asarray(Image.open(server.folder / ("input" if kept else "temp") / "lazydiffusion" / f"{id}.png"))


def kept_graph(value: dict[str, Any]) -> Prompt:
    saved = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "kept"}}
    return graph(value) | {"3": saved}


def test_a_stroke_becomes_four_variations_and_one_is_kept(server: Server) -> None:
    """They differ, the hole is new, outside every byte is the file's; and what was kept comes out of the node."""
    before = waves()
    opened = upload(server, png(before))
    done = server.run(graph(request(opened["id"])))
    assert done.end == "execution_success", done.error
    made = told(done)["variations"]
    outside = np.ones(before.shape[:2], bool)
    outside[HOLE] = False
    after = [pixels_of(server, each["id"], kept=False) for each in made]
    assert len({each["id"] for each in made}) == 4
    for each in after:
        assert (each[outside] == before[outside]).all()
        assert (np.abs(each.astype(int) - before)[HOLE].max(-1) > 8).mean() > 0.5
    assert server.post(f"{PATH}/keep", {"id": made[1]["id"], "tab": TAB}) == {"id": made[1]["id"]}
    passed = server.run(kept_graph({"canvas": made[1]["id"]}))
    assert passed.executed == ["2", "3"]  # no model is loaded for what was kept
    assert (np.asarray(Image.open(server.pictures(passed)[0])) == after[1]).all()


def test_the_same_seed_gives_the_same_again_and_another_does_not(server: Server) -> None:
    """Whether or not latents are still at hand: the ids are those of the pixels."""
    opened = upload(server, png(waves()))["id"]
    first, again, other = (
        [each["id"] for each in told(server.run(graph(request(opened, name, seed=seed))))["variations"]]
        for name, seed in (("x", 11), ("y", 11), ("z", 12))
    )
    assert first == again
    assert first[1:] == other[:3]  # each variation has the seed after the one before


def test_a_stroke_goes_on_from_the_latents_that_were_sampled(server: Server) -> None:
    """Two edits in a row; the second one's outside is what the first was kept as."""
    opened = upload(server, png(waves()))["id"]
    first = told(server.run(graph(request(opened, "p", variations=1))))["variations"][0]["id"]
    server.post(f"{PATH}/keep", {"id": first, "tab": TAB})
    mask = patch() | {"y": 62}
    second = told(server.run(graph(request(first, "q", variations=1, mask=mask))))["variations"][0]["id"]
    old, new = (pixels_of(server, each, kept) for each, kept in ((first, True), (second, False)))
    changed = (old != new).any(-1)
    assert changed[62:92, 20:70].mean() > 0.5
    changed[62:92, 20:70] = False
    assert not changed.any()


def test_colours_that_were_painted_are_what_the_hole_begins_with(server: Server) -> None:
    opened = upload(server, png(waves()))["id"]
    red, blue = (
        pixels_of(server, told(server.run(
            graph(request(opened, name, variations=1, sketch=patch(colour)), sketch_denoise=0.3, blend="paste")
        ))["variations"][0]["id"], kept=False)[HOLE].mean((0, 1))
        for name, colour in (("red", (230, 20, 20)), ("blue", (20, 20, 230)))
    )  # fmt: skip
    assert red[0] - red[2] > 60 and blue[2] - blue[0] > 60


def test_a_picture_of_another_size_than_the_models(server: Server) -> None:
    before = waves(200, 310)
    opened = upload(server, png(before))
    assert (opened["width"], opened["height"]) == (310, 200)
    made = told(server.run(graph(request(opened["id"], "wide", variations=2))))["variations"]
    after = pixels_of(server, made[0]["id"], kept=False)
    outside = np.ones(before.shape[:2], bool)
    outside[HOLE] = False
    assert (after[outside] == before[outside]).all() and (after[HOLE] != before[HOLE]).any()


def test_previews_show_every_variation_and_where_it_lies(server: Server) -> None:
    opened = upload(server, png(waves(200, 310)))["id"]
    done = server.run(graph(request(opened, "seen", variations=3)))
    shown = [data for kind, data in done.events if kind == "lazydiffusion.preview"]
    assert shown and shown[-1]["step"] == 3 and {len(each["pictures"]) for each in shown} == {3}
    left, top, width, height = shown[0]["box"]
    assert left <= 20 and top <= 30 and left + width >= 70 and top + height >= 60
    assert shown[0]["name"] == "seen" and shown[0]["pictures"][0].startswith("data:image/jpeg;base64,")


def test_a_connected_picture_begins_an_empty_canvas(server: Server) -> None:
    prompt = kept_graph({}) | {
        "4": {"class_type": "LoadImage", "inputs": {"image": "lazydiffusion-table.png"}},
    }
    prompt["2"]["inputs"]["image"] = ["4", 0]
    done = server.run(prompt)
    assert done.end == "execution_success", done.error
    table = np.asarray(Image.open(server.folder / "input" / "lazydiffusion-table.png").convert("RGB"))
    assert (pixels_of(server, told(done)["opened"][0]["id"], kept=True) == table).all()
    assert (np.asarray(Image.open(server.pictures(done)[0])) == table).all()


def test_an_interrupted_request_leaves_nothing(server: Server) -> None:
    opened = upload(server, png(waves()))["id"]
    before = set((server.folder / "temp" / "lazydiffusion").iterdir())

    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "lazydiffusion.preview":
            server.post("/interrupt", {})

    done = server.run(graph(request(opened, "stopped", seed=99), steps=400), stop)
    assert done.end == "execution_interrupted"
    assert set((server.folder / "temp" / "lazydiffusion").iterdir()) == before
    assert server.run(graph(request(opened, "next", seed=98))).end == "execution_success"


WRONG: dict[str, tuple[Callable[[str], Any], str]] = {
    "no canvas": (lambda id: request(""), "the canvas is empty"),
    "a path": (lambda id: request("../../models/x"), "is no picture of a canvas"),
    "not here": (lambda id: request("0" * 32), "is not on this server"),
    "nothing painted": (lambda id: request(id, mask=None), "nothing is painted"),
    "no tab": (lambda id: request(id, tab="x"), "reload it"),
    "too many": (lambda id: request(id, variations=99), "variations: choose"),
    "a damaged mask": (lambda id: request(id, mask={"x": 0, "y": 0, "png": "AAAA"}), "undo the last stroke"),
    "a mask that is no PNG": (
        lambda id: request(id, mask={"x": 0, "y": 0, "png": base64.b64encode(png(waves(), "JPEG")).decode()}),
        "undo the last stroke",
    ),
    "beside the canvas": (lambda id: request(id, mask=patch() | {"x": -1}), "mask.x: choose"),
    "no JSON": (lambda id: "{", "damaged"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_request_that_cannot_be_is_refused_with_a_word(server: Server, wrong: str) -> None:
    make, word = WRONG[wrong]
    done = server.run(graph(make(upload(server, png(waves()))["id"])))
    assert done.end == "execution_error" and word in done.error


def test_bad_uploads_are_refused_with_a_word(server: Server) -> None:
    """What is no picture, what is too large, what would run a program."""
    inputs = set((server.folder / "input").rglob("*"))
    assert "no picture that a canvas can open" in upload(server, b"<svg xmlns='http://www.w3.org/2000/svg'/>")["error"]
    assert "no picture that a canvas can open" in upload(server, b"%!PS-Adobe-3.0 EPSF-3.0\n")["error"]
    assert "no picture that a canvas can open" in upload(server, b"")["error"]
    small, huge = (b"IHDR" + side * 2 for side in (b"\x00\x00\x00\x01", b"\x00\x00\x75\x30"))
    bomb = png(np.zeros((1, 1, 3), np.uint8)).replace(small, huge)
    assert "error" in upload(server, bomb)
    assert "choose sides of" in upload(server, png(np.zeros((2, 16385), np.uint8)))["error"]
    assert "error" in upload(server, png(waves())[:300])
    assert set((server.folder / "input").rglob("*")) == inputs


def test_a_file_that_is_too_large_is_refused_before_it_is_read(server: Server) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(f"POST {PATH}/picture HTTP/1.1\r\nHost: x\r\nContent-Length: {2**33}\r\n\r\n".encode())
        assert b"too large" in wire.recv(4096) + wire.recv(4096)


@pytest.mark.parametrize("route", ["keep", "extend", "blank"])
@pytest.mark.parametrize("sent", [
    {}, [], "x", {"id": "../../../etc/passwd", "tab": TAB, "left": 8}, {"id": ["x"], "tab": TAB},
    {"id": "0" * 32, "tab": TAB, "left": 8}, {"width": 10**9, "height": 1}, {"width": 16384, "height": 16384},
    {"width": True, "height": 5},
])  # fmt: skip
def test_bad_questions_are_refused_with_a_word(server: Server, route: str, sent: Any) -> None:
    assert list(server.post(f"{PATH}/{route}", sent)) == ["error"]


def test_another_tabs_variation_is_refused(server: Server) -> None:
    opened = upload(server, png(waves()))["id"]
    made = told(server.run(graph(request(opened, "mine", variations=1, seed=77))))["variations"][0]["id"]
    assert "another tab" in server.post(f"{PATH}/keep", {"id": made, "tab": OTHER})["error"]
    assert server.post(f"{PATH}/keep", {"id": made, "tab": TAB}) == {"id": made}


def test_extended_and_blank_canvases(server: Server) -> None:
    before = waves()
    opened = upload(server, png(before))["id"]
    wide = server.post(f"{PATH}/extend", {"id": opened, "right": 32, "top": 16})
    assert (wide["width"], wide["height"]) == (128, 112)
    after = pixels_of(server, wide["id"], kept=True)
    assert (after[16:, :96] == before).all() and (after[0, 127] == before[0, 95]).all()
    blank = server.post(f"{PATH}/blank", server.get(PATH) | {"width": 64, "height": 48})
    assert (blank["width"], blank["height"]) == (64, 48)
    assert server.get(PATH)["size"] > 0


def test_names_of_files_are_those_of_their_pixels(server: Server) -> None:
    """Opened twice, in whatever format, a picture is one file, and none is ever written over."""
    ids = {upload(server, png(waves(shift=1), kind))["id"] for kind in ("PNG", "BMP", "TIFF")}
    assert len(ids) == 1
    path = server.folder / "input" / "lazydiffusion" / f"{ids.pop()}.png"
    written = path.stat().st_mtime_ns
    upload(server, png(waves(shift=1)))
    assert path.stat().st_mtime_ns == written


def test_a_killed_server_keeps_what_was_kept(tmp_path: Path) -> None:
    """Killed while it samples: the canvas is whole, what was not kept is said to be gone, and the stroke works."""
    pytest.importorskip("aiohttp", reason="the host's packages are missing: pip install -e '.[host]'")
    arguments = os.environ.get("COMFYUI_ARGS", "").split()
    with running(checkout(), tmp_path, *arguments) as server:
        opened = upload(server, png(waves()))["id"]
        first, second = (
            told(server.run(graph(request(opened, name, variations=1, seed=seed))))["variations"][0]["id"]
            for name, seed in (("a", 1), ("b", 2))
        )
        server.post(f"{PATH}/keep", {"id": first, "tab": TAB})
        kept = pixels_of(server, first, kept=True)
        server.post("/prompt", {"prompt": graph(request(first, "c", seed=5), steps=900), "client_id": "x"})
        server.kill()
    with running(checkout(), tmp_path, *arguments) as server:
        assert (pixels_of(server, first, kept=True) == kept).all()
        assert "no longer there" in server.post(f"{PATH}/keep", {"id": second, "tab": TAB})["error"]
        assert server.run(graph(request(first, "d"))).end == "execution_success"
