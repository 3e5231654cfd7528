"""The 512 px model's network inside the host: tokens of 2×2 cells, rotary positions, means and variances as answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from samples import tiny_model

from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.config import PRESETS

from .in_process import Pack
from .test_model import SAME_SAMPLERS, Graph, assert_variations_equal_the_librarys

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def graph(pack: Pack, vocabulary: bytes, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    import folder_paths

    path: Path = tmp_path_factory.mktemp("lazydiffusion") / "tiny-large.safetensors"
    save_checkpoint(tiny_model("wiener", vocabulary, replace(PRESETS["lazydiffusion-512"], canvas=96)), path)
    folder_paths.add_model_folder_path(pack.part("nodes.host.settings").FOLDER, str(path.parent))
    return Graph(pack, path)


@pytest.mark.parametrize("sampler", SAME_SAMPLERS)
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_variations_equal_the_librarys(pack: Pack, graph: Graph, sampler: str, cfg: float) -> None:
    assert_variations_equal_the_librarys(pack, graph, sampler, cfg)
