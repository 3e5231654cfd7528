"""What the page of the canvas editor asks the server for, beside runs of its node. Names of files are made here."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from aiohttp import web

from ...lazydiff.core.checks import Range
from ...lazydiff.model.checkpoint import SHIPPED, read_settings
from .canvas_files import (
    CanvasPicture,
    check_canvas_size,
    check_id,
    keep_picture,
    load_picture,
    read_upload,
    store_picture,
)
from .canvas_request import check_tab, number
from .canvas_store import OWNERS

PATH = "/lazydiffusion/canvas"
MOST_BYTES = 100 * 2**20
SIDES = ("left", "top", "right", "bottom")
PIXELS, MARGIN_PIXELS = Range(1, 16384, whole=True), Range(0, 8192, whole=True)
GREY = 128
Handler = Callable[[web.Request], Awaitable[Any]]


def add_canvas_routes() -> None:
    """Let the host's server, where there is one, answer the page."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return
    server.routes.get(PATH)(answered(new_size))
    for name, handler in {"picture": open_upload, "blank": open_blank, "extend": widen_canvas, "keep": keep}.items():
        server.routes.post(f"{PATH}/{name}")(answered(handler))


def answered(handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler whose result is JSON, and whose errors are a word for the person."""

    async def answer(request: web.Request) -> web.Response:
        try:
            result = await handler(request)
        except PermissionError as error:
            return web.json_response({"error": str(error)}, status=403)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(result._asdict() if isinstance(result, CanvasPicture) else result)

    return answer


async def new_size(request: web.Request) -> dict[str, int]:
    """The side that a blank canvas is offered with: that of the model that comes with the pack."""
    return {"size": read_settings(SHIPPED)[0].network.canvas}


async def open_upload(request: web.Request) -> CanvasPicture:
    """A picture file, as the body."""
    data = bytearray()
    if (request.content_length or 0) > MOST_BYTES:
        raise ValueError(too_large())
    async for part in request.content.iter_chunked(2**16):
        data += part
        if len(data) > MOST_BYTES:
            raise ValueError(too_large())
    return await asyncio.to_thread(lambda: store_picture(read_upload(bytes(data)), kept=True))


def too_large() -> str:
    return f"the file is too large: {MOST_BYTES // 2**20} MB at most"


async def open_blank(request: web.Request) -> CanvasPicture:
    """{width, height}"""
    given = await body(request)
    width, height = (number(side, given.get(side), PIXELS) for side in ("width", "height"))
    check_canvas_size(width, height)
    return await asyncio.to_thread(store_picture, np.full((height, width, 3), GREY, np.uint8), True)


async def widen_canvas(request: web.Request) -> CanvasPicture:
    """{id, left, top, right, bottom}: a picture with margins that repeat its edge"""
    given = await body(request)
    left, top, right, bottom = (number(side, given.get(side, 0), MARGIN_PIXELS) for side in SIDES)

    def widen() -> CanvasPicture:
        pixels = load_picture(str(given.get("id")))
        check_canvas_size(pixels.shape[1] + left + right, pixels.shape[0] + top + bottom)
        return store_picture(np.pad(pixels, ((top, bottom), (left, right), (0, 0)), "edge"), kept=True)

    return await asyncio.to_thread(widen)


async def keep(request: web.Request) -> dict[str, str]:
    """{id, tab}: a variation stays, if this is the page that asked for it"""
    given = await body(request)
    id, tab = str(given.get("id")), str(given.get("tab"))
    check_id(id)
    check_tab(tab)
    OWNERS.check(id, tab)
    await asyncio.to_thread(keep_picture, id)
    return {"id": id}


async def body(request: web.Request) -> dict[str, Any]:
    """Errors: ValueError for a body that is no JSON object, or a long one."""
    if (request.content_length or 0) > 2**16:
        raise ValueError("this is more than was asked for")
    try:
        given = json.loads(await request.read())
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ValueError("this is not what the canvas editor sends")
    return given
