"""The laboratory's small model and its gates, where the host finds what a user has brought."""

from __future__ import annotations

import shutil
from pathlib import Path

from lazydiff.evaluation.laboratory import GATES, SMALL

KINDS = {"lazydiffusion": SMALL, "lazydiffusion_gates": GATES}


def put_laboratory(models: Path) -> None:
    """Into the host's folder of models."""
    for kind, file in KINDS.items():
        (models / kind).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, models / kind / file.name)


def add_laboratory(folder: Path) -> None:
    """Into a host in this process, whose own folder of models is left alone."""
    import folder_paths

    put_laboratory(folder)
    for kind in KINDS:
        folder_paths.add_model_folder_path(kind, str(folder / kind))
    folder_paths.add_model_folder_path("diffusion_models", str(folder / "lazydiffusion"))
