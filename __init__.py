"""ComfyUI's way into the pack.

The host is imported only once it asks for the extension: pytest imports this file wherever the repository lies, with no
host in sight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension


async def comfy_entrypoint() -> ComfyExtension:
    """Hand the pack's nodes to ComfyUI, which calls this once at its start."""
    from .nodes import LazyDiffusionExtension

    return LazyDiffusionExtension()
