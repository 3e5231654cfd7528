"""The ComfyUI side of the pack: thin V3 nodes over the library in `lazydiff`."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io


class LazyDiffusionExtension(ComfyExtension):
    """What ComfyUI loads. This version brings the library only; the nodes come in the next one."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes, none so far."""
        logging.info("Lazy Diffusion: this version has no nodes yet, only the Python library (python -m lazydiff).")
        return []
