"""The types of the sockets that are ours."""

from __future__ import annotations

from comfy_api.latest import io

from ..lazydiff.cache.kv_context import KVContext
from ..lazydiff.model.context import LazyContext
from ..lazydiff.pipeline.canvas import Canvas

CATEGORY = "LazyDiffusion"
AnyContext = LazyContext | KVContext


@io.comfytype(io_type="LAZY_CONTEXT")
class LazyContextIO(io.ComfyTypeIO):
    Type = AnyContext


@io.comfytype(io_type="LAZY_CANVAS")
class LazyCanvasIO(io.ComfyTypeIO):
    Type = Canvas


@io.comfytype(io_type="LAZY_CANVAS_EDITOR")
class CanvasEditorIO(io.ComfyTypeIO):
    """The widget that a person paints on; what it hands to the server is JSON, see `host.canvas_request`."""

    Type = str
