"""The type of the socket that is ours."""

from __future__ import annotations

from comfy_api.latest import io

from ..lazydiff.context import KVContext, LazyContext


@io.comfytype(io_type="LAZY_CONTEXT")
class LazyContextIO(io.ComfyTypeIO):
    Type = LazyContext | KVContext


CATEGORY = "LazyDiffusion"
