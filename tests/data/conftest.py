"""Models and pictures for preparations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data.pictures import save_picture
from public_folders import save_text_encoder, save_vae

from lazydiff.data.samples import ModelFolders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> ModelFolders:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    return ModelFolders(save_vae(folder / "vae"), save_text_encoder(folder / "text"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(5):
        save_picture(tmp_path / "pictures", f"p{i}", i, masks=2)
    return tmp_path / "pictures"
