"""The ComfyUI side of the pack: thin V3 nodes over the library in `lazydiff`."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .attention_mask import AttentionMask, InstantMask
from .blend import PoissonBlend
from .canvas import LazyCanvas, LazyCanvasContext, LazyCanvasEdit
from .canvas_editor import LazyCanvasEditor
from .context import LazyContextApply, LazyContextEncode, LazyContextInfo, LazyContextView
from .difference_mask import PromptDifferenceMask, RecordLatents
from .gates import LazyGates
from .host.canvas_files import read_upload, store_picture
from .host.registration import register, registered_elsewhere
from .host.settings import add_folders
from .load import LazyCheckpointLoader
from .masks import LazyMask, LazyOutpaint
from .prompts import LazyPrompts
from .sample import LazySample
from .vae import LazyVAEDecode

ON_CANVAS = "lazydiffusion-table.png"  # what the first template's canvas shows
PICTURES = Path(__file__).parents[1] / "workflows" / "pictures"


class LazyDiffusionExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes. The host calls this once at its start, before it reads any schema."""
        if other := registered_elsewhere():
            logging.warning(
                "Lazy Diffusion is installed twice, in %s and in %s: remove one of them. The second one has no "
                "nodes", other, PICTURES.parents[1],
            )  # fmt: skip
            return []
        add_folders()
        register()
        add_pictures()
        if "server" in sys.modules:  # not where the host is imported as a library
            from .host.canvas_routes import add_canvas_routes

            add_canvas_routes()
        return [
            LazyCheckpointLoader, LazyContextEncode, LazySample, LazyContextApply, PoissonBlend, LazyContextInfo,
            LazyCanvas, LazyCanvasContext, LazyCanvasEdit, LazyVAEDecode, LazyPrompts, LazyGates,
            AttentionMask, InstantMask, PromptDifferenceMask, RecordLatents, LazyMask, LazyOutpaint, LazyContextView,
            LazyCanvasEditor,
        ]  # fmt: skip


def add_pictures() -> None:
    """Put the templates' pictures where Load Image and the canvas find them; one that is there stays."""
    for picture in PICTURES.iterdir():
        target = Path(folder_paths.get_input_directory()) / picture.name
        try:
            if not target.exists():
                shutil.copyfile(picture, target)
            if picture.name == ON_CANVAS:
                store_picture(read_upload(picture.read_bytes()), kept=True)
        except OSError as error:
            logging.warning("Lazy Diffusion: the templates' picture %s could not be copied: %s", target, error)
