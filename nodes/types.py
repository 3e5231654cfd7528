"""The types of the sockets that are ours."""

from __future__ import annotations

from comfy_api.latest import io

from ..lazydiff.cache.kv_context import KVContext
from ..lazydiff.model.context import LazyContext
from ..lazydiff.pipeline.canvas import Canvas


@io.comfytype(io_type="LAZY_CONTEXT")
class LazyContextIO(io.ComfyTypeIO):
    Type = LazyContext | KVContext


@io.comfytype(io_type="LAZY_CANVAS")
class LazyCanvasIO(io.ComfyTypeIO):
    Type = Canvas


CATEGORY = "LazyDiffusion"
