"""The pack as ComfyUI loads it: the repository's folder, under a name of the host's making."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from in_process import Pack

pytestmark = pytest.mark.host

NODES = {
    "LazyCheckpointLoader": ["checkpoint"],
    "LazyContextEncode": ["model", "vae", "image", "mask", "grow", "feather"],
    "LazySample": [
        "model", "context", "positive", "negative", "seed", "steps", "cfg", "sampler", "scheduler", "denoise",
        "variations", "sketch",
    ],
    "LazyContextApply": ["model", "context"],
    "PoissonBlend": ["destination", "source", "mask", "gradients", "grow"],
    "LazyContextInfo": ["context"],
}  # fmt: skip


def test_ids_and_inputs_are_for_ever(pack: Pack) -> None:
    """Saved workflows hold these names, and widget values by position: nothing may move, new inputs go last."""
    for node, names in NODES.items():
        schema = pack.host.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
        assert [each.id for each in schema.inputs][: len(names)] == names
        assert all(each.tooltip for each in schema.inputs), f"{node} has an input without a tooltip"
        assert (Path(__file__).parents[2] / "web" / "docs" / f"{node}.md").is_file()


def test_loading_twice_registers_once(pack: Pack) -> None:
    import comfy.supported_models

    pack.part("nodes.host.model").register()
    names = [model.__name__ for model in comfy.supported_models.models]
    assert names.count("LazyConfig") == 1


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
        ({"source": torch.rand(1, 20, 20, 3)}, "make the source match"),
        ({"source": torch.rand(3, 40, 60, 3), "destination": torch.rand(2, 40, 60, 3)}, "batches of different length"),
        ({"source": torch.full((1, 40, 60, 3), float("nan"))}, "NaN"),
    ],
)
def test_poisson_blend_refuses_in_words(pack: Pack, changes: dict[str, torch.Tensor], message: str) -> None:
    good = {"destination": torch.rand(1, 40, 60, 3), "source": torch.rand(1, 40, 60, 3), "mask": torch.ones(1, 40, 60)}
    with pytest.raises(ValueError, match=message):
        pack.call("PoissonBlend", **{**good, **changes}, gradients="source", grow=0)
