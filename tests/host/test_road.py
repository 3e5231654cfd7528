"""The end of the road: what was prepared and trained from a folder of pictures edits a picture in ComfyUI."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from public_folders import NETWORK
from road import prepare_and_train, set_out
from torch import Tensor

from .in_process import Pack
from .test_kv_templates import picture, run
from .tiny_models import TinyVAE

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def checkpoint(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained model where Load Diffusion Model looks for them."""
    import folder_paths

    road = set_out(tmp_path_factory.mktemp("road"))
    prepare_and_train(road, "lazy")
    path = Path(road.checkpoint("lazy"))
    folder_paths.add_model_folder_path("diffusion_models", str(path.parent))
    return path.name


def test_the_template_for_full_size_checkpoints_edits_with_it(pack: Pack, checkpoint: str) -> None:
    """The host's own loader and every node of the template, but for text encoder, VAE and picture, as they stand."""
    text = [[torch.randn(1, 9, NETWORK.text_width), {}]]
    stand_ins = {
        "UNETLoader": lambda **unused: pack.call("UNETLoader", checkpoint, "default"), "CLIPLoader": (None,),
        "VAELoader": (TinyVAE(4),), "LoadImage": picture, "CLIPTextEncode": (text,), "SaveImage": (),
    }  # fmt: skip
    graph, results = run(pack, "14-full-size-pixart", stand_ins, {"steps": 3})
    named = {node["class_type"]: results[name] for name, node in graph.items()}
    (canvas, mask), (blended,) = named["LoadImage"], named["PoissonBlend"]
    assert asdict(named["UNETLoader"][0].model.network) == asdict(NETWORK)
    hole: Tensor = mask[0] > 0.5
    assert torch.equal(blended[0][~hole], canvas[0][~hole])
    assert (blended[0][hole] - canvas[0][hole]).abs().mean() > 0.01
