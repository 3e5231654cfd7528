"""ComfyUI's way into the pack.

The host is imported only once it asks for the extension: pytest imports this file wherever the repository lies, with no
host in sight.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Hand the pack's nodes to ComfyUI, which calls this once at its start."""
    try:
        from .nodes import LazyDiffusionExtension
    except Exception as error:  # whatever it is: the host goes on without us, and says less about it
        logging.error("Lazy Diffusion cannot start, its nodes are missing: %s: %s", type(error).__name__, error)
        raise
    return LazyDiffusionExtension()
