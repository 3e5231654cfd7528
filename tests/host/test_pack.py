"""The pack as ComfyUI loads it: the repository's folder, under a name of the host's making."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from .in_process import Pack
from .running_server import PACK

pytestmark = pytest.mark.host

NODES = {
    "LazyCheckpointLoader": ["checkpoint"],
    "LazyContextEncode": [
        "model", "vae", "image", "mask", "grow", "feather", "anchors", "ring", "keep_text", "cache_precision",
        "cache_place", "cache_limit", "reuse_anchors", "zoom", "zoom_surroundings", "zoom_megapixels",
    ],
    "LazySample": [
        "model", "context", "positive", "negative", "seed", "steps", "cfg", "sampler", "scheduler", "denoise",
        "variations", "sketch",
    ],
    "LazyContextApply": ["model", "context"],
    "PoissonBlend": ["destination", "source", "mask", "gradients", "grow", "match_colours", "context"],
    "LazyContextInfo": ["context"],
    "LazyCanvas": ["vae", "image"],
    "LazyCanvasContext": [
        "model", "canvas", "mask", "grow", "feather", "anchors", "ring", "keep_text", "cache_precision", "cache_place",
        "cache_limit", "reuse_anchors",
    ],
    "LazyCanvasEdit": ["canvas", "samples", "context", "blend"],
    "LazyVAEDecode": ["samples", "vae", "hole", "canvas", "mode", "match_colours"],
    "LazyPrompts": ["clip", "text"],
    "LazyGates": ["model", "gates", "ratio", "threshold"],
    "AttentionMask": [
        "model", "clip", "vae", "image", "prompt", "words", "reference", "object_threshold", "background_threshold",
        "mask_threshold", "seed", "seeds", "steps", "strength", "cfg", "negative", "evidence",
    ],
    "InstantMask": [
        "model", "clip", "prompt", "words", "reference", "object_threshold", "background_threshold", "mask_threshold",
    ],
    "PromptDifferenceMask": [
        "model", "source", "target", "negative", "latent", "seed", "steps", "first", "cfg", "sampler", "scheduler",
        "denoise", "clip", "source_text", "target_text",
    ],
    "RecordLatents": ["model"],
    "LazyMask": ["mask", "threshold", "fill_islands"],
    "LazyOutpaint": ["image", "left", "top", "right", "bottom", "overlap", "mask"],
    "LazyContextView": ["context", "image"],
    "LazyCanvasEditor": [
        "model", "clip", "vae", "canvas", "steps", "cfg", "sampler", "scheduler", "denoise", "sketch_denoise",
        "negative", "grow", "feather", "blend", "image",
    ],
}  # fmt: skip


def test_ids_and_inputs_are_for_ever(pack: Pack) -> None:
    """Saved workflows hold these names, and widget values by position: nothing may move, new inputs go last."""
    for node, names in NODES.items():
        schema = pack.host.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
        assert [each.id for each in schema.inputs][: len(names)] == names
        assert all(each.tooltip for each in schema.inputs), f"{node} has an input without a tooltip"
        assert (Path(__file__).parents[2] / "web" / "docs" / f"{node}.md").is_file()


def test_import_is_quick_and_opens_no_connection(host: ModuleType) -> None:
    """In a process of its own, with the host's modules already there. CPU time, so that a busy machine is no slower."""
    script, checkout = Path(__file__).with_name("import_pack.py"), Path(host.__file__).parent
    command = [sys.executable, str(script), str(checkout), str(PACK)]
    times = []
    for _ in range(2):  # the first one compiles
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr[-2000:]
        times.append(float(run.stdout.split("seconds")[-1]))
    assert min(times) < 0.5


def test_failing_import_is_one_clear_line(pack: Pack, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And leaves the host running."""
    shutil.copy(PACK / "__init__.py", tmp_path)
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "__init__.py").write_text("import a_package_that_is_missing")
    assert not asyncio.run(pack.host.load_custom_node(str(tmp_path)))
    ours = [record.message for record in caplog.records if "Lazy Diffusion cannot start" in record.message]
    assert len(ours) == 1 and "a_package_that_is_missing" in ours[0]


def test_loading_twice_registers_once(pack: Pack) -> None:
    import comfy.supported_models

    pack.part("nodes.host.registration").register()
    names = [model.__name__ for model in comfy.supported_models.models]
    assert names.count("LazyConfig") == 1


def test_a_second_copy_of_the_pack_leaves_its_nodes_out(
    pack: Pack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And says where the two are."""
    copy = tmp_path / "another-lazydiffusion"
    ignored = shutil.ignore_patterns(".*", "tests", "docs", "benchmarks", "*.csv", "*.png")
    shutil.copytree(PACK, copy, ignore=ignored)
    registered = dict(pack.host.NODE_CLASS_MAPPINGS)
    assert asyncio.run(pack.host.load_custom_node(str(copy)))
    assert pack.host.NODE_CLASS_MAPPINGS == registered
    assert "installed twice" in caplog.text and str(PACK) in caplog.text and str(copy) in caplog.text


@pytest.mark.parametrize("node", ["LazySample", "LazyContextApply"])
def test_stock_model_with_a_learned_context_is_refused_in_words(pack: Pack, node: str) -> None:
    """A MODEL is a patcher around a network; of a stock one, only the kind of the network matters here."""

    class Flux: ...

    learned = pack.part("lazydiff.model.context").LazyContext
    context = learned(**dict.fromkeys(learned._fields))  # looked into by nobody
    arguments = {**dict.fromkeys(NODES[node][1:]), "context": context}
    with pytest.raises(ValueError, match="this MODEL is a Flux.*Connect the MODEL of a Lazy Checkpoint Loader"):
        pack.call(node, model=SimpleNamespace(model=Flux()), **arguments)


def test_baseline_is_no_lazy_model(pack: Pack) -> None:
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(PACK / "lazydiff" / "evaluation" / "weights"))
    with pytest.raises(ValueError, match="regenerate-image.safetensors computes every token"):
        pack.call("UNETLoader", "regenerate-image.safetensors", "default")


@pytest.mark.parametrize("gradients", ["source", "mixed"])
def test_poisson_blend_keeps_the_outside_bit_by_bit(pack: Pack, gradients: str) -> None:
    destination, source, mask = torch.rand(2, 40, 60, 3), torch.rand(1, 40, 60, 3), torch.zeros(1, 40, 60)
    mask[:, 10:20, 10:30] = 1
    (result,) = pack.call("PoissonBlend", destination, source, mask, gradients, 2)
    assert result.shape == destination.shape and result.min() >= 0 and result.max() <= 1
    changed = (result != destination).any(-1)
    assert changed[:, 10:20, 10:30].all() and not changed[:, :7].any() and not changed[:, :, 33:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": torch.zeros(1, 8, 8)}, "mask"),
        ({"source": torch.rand(1, 20, 20, 3)}, "source is 20×20 and the destination 60×40"),
        ({"source": torch.rand(3, 40, 60, 3), "destination": torch.rand(2, 40, 60, 3)}, "batches of different length"),
        ({"source": torch.full((1, 40, 60, 3), float("nan"))}, "NaN"),
    ],
)
def test_poisson_blend_refuses_in_words(pack: Pack, changes: dict[str, torch.Tensor], message: str) -> None:
    good = {"destination": torch.rand(1, 40, 60, 3), "source": torch.rand(1, 40, 60, 3), "mask": torch.ones(1, 40, 60)}
    with pytest.raises(ValueError, match=message):
        pack.call("PoissonBlend", **{**good, **changes}, gradients="source", grow=0)
