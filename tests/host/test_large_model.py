"""The 512 px model's network inside the host: tokens of 2×2 cells, rotary positions, means and variances as answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import tiny_model

from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.model.config import PRESETS

from .in_process import Pack
from .test_model import CLOSE, Graph, pictures, visible

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def graph(pack: Pack, vocabulary: bytes, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    import folder_paths

    path: Path = tmp_path_factory.mktemp("lazydiffusion") / "tiny-large.safetensors"
    save_checkpoint(tiny_model("wiener", vocabulary, replace(PRESETS["lazydiffusion-512"], canvas=96)), path)
    folder_paths.add_model_folder_path(pack.part("nodes.host.settings").FOLDER, str(path.parent))
    return Graph(pack, path)


@pytest.mark.parametrize(("sampler", "same"), [("ancestral (as trained)", "ancestral"), ("euler", "euler")])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_variations_equal_the_librarys(pack: Pack, graph: Graph, sampler: str, same: str, cfg: float) -> None:
    """The nodes make what the library makes from the same seeds, and leave the rest as it was."""
    sampling = replace(graph.library.config.sampling, sampler=same, steps=10, guidance=cfg)
    expected = pictures(pack, graph, [7, 8], sampling=sampling)
    args = graph.model, graph.context, graph.positive, graph.negative, 7, 10, cfg, sampler, "simple", 1.0, 2
    (latent,) = pack.call("LazySample", *args)
    (pixels,) = pack.call("VAEDecode", graph.vae, latent)
    assert torch.allclose(pixels.movedim(-1, 1), expected, atol=CLOSE)
    canvas = graph.latent["samples"].expand_as(latent["samples"])
    assert torch.equal(visible(latent["samples"], graph), visible(canvas, graph))
