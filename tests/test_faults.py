"""What used to go wrong in silence or in an exception of another's, one test for each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samples import scene, tiny_model

from lazydiff.cache.module_skip import Gates
from lazydiff.core.poisson import poisson_blend
from lazydiff.model.checkpoint import CheckpointError, load_checkpoint
from lazydiff.model.config import Sampling
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline import edit as module
from lazydiff.pipeline.encode import encode
from lazydiff.pipeline.sample import SampleSettings, sample
from lazydiff.sampling.schedules import flow_sigmas

edit = module.edit
QUICK = SampleSettings(Sampling("euler", steps=2, guidance=1.0))


@pytest.fixture(scope="module")
def flow(vocabulary: bytes) -> LazyDiffusion:
    return tiny_model("flow", vocabulary, "small")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("blend", ["poisson", "paste"])
def test_an_image_of_any_floating_type_is_edited_and_keeps_it(
    flow: LazyDiffusion, dtype: torch.dtype, blend: module.Blend
) -> None:
    image, mask, caption = scene(1)
    image = image.to(dtype)
    result = edit(flow, image, mask.to(dtype), caption, [0, 1], QUICK, blend=blend)
    assert result.dtype == dtype
    assert torch.equal(torch.where(mask > 0, 0, result), torch.where(mask > 0, 0, image).expand_as(result))
    expected = edit(flow, image.float(), mask, caption, [0, 1], QUICK, blend=blend)
    assert torch.allclose(result.float(), expected, atol=torch.finfo(dtype).eps if dtype.itemsize < 4 else 1e-6)


def test_many_seeds_are_blended_a_few_at_a_time(flow: LazyDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures, up to the rounding of the last bits, which depends on how many are blended together."""
    image, mask, caption = scene(1)
    together, seen = edit(flow, image, mask, caption, range(7), QUICK), []
    composite = module.composite
    monkeypatch.setattr(module, "composite", lambda *args: seen.append(len(args[1])) or composite(*args))
    monkeypatch.setattr(module, "BLENDED", 3 * 96 * 96)
    assert torch.allclose(edit(flow, image, mask, caption, range(7), QUICK), together, atol=1e-6)
    assert seen == [3, 3, 1]


@pytest.mark.parametrize(
    ("prompts", "seeds", "words"),
    [
        (["a tree"], [], "no seed"),
        (["a tree"], [1, 2], "1 prompts and 2 seeds"),
        (["a tree", "a fish"], [1], "2 prompts and 1 seeds"),
        (["a tree"], [2**64], "from 0 to"),
        (["a tree"], [-1], "from 0 to"),
        (["a \udcff tree"], [1], "no text in Unicode"),
    ],
)
def test_prompts_and_seeds_that_cannot_be(
    flow: LazyDiffusion, prompts: list[str], seeds: list[int], words: str
) -> None:
    image, mask, _ = scene(1)
    with pytest.raises(ValueError, match=words):
        sample(flow, encode(flow, image, mask), prompts, seeds, QUICK)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_a_shift_that_cannot_be(flow: LazyDiffusion, shift: float) -> None:
    with pytest.raises(ValueError, match="shift"):
        flow_sigmas(4, shift)
    with pytest.raises(ValueError, match="shift"):
        edit(flow, *scene(1), settings=SampleSettings(Sampling("ancestral", steps=2, shift=shift)))


def test_gates_of_another_size_are_told(flow: LazyDiffusion) -> None:
    """Of a file that names this model, but was not written for it."""
    gates = Gates(flow_sigmas(2), flow.fingerprint, torch.ones(2, 2, 24), torch.ones(2, 2), {})
    with pytest.raises(ValueError, match="2 modules 24 wide, the model has 4 of 24"):
        edit(flow, *scene(1), settings=QUICK._replace(skip=gates))


def test_a_sketch_that_is_no_picture(flow: LazyDiffusion) -> None:
    image, mask, caption = scene(1)
    for sketch in (torch.full_like(image, torch.nan), image + 5):
        with pytest.raises(ValueError, match="the sketch has values"):
            edit(flow, image, mask, caption, settings=QUICK._replace(sketch=sketch))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    """It used to be waited for without end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="a pipe or device, not a file"):
        load_checkpoint(tmp_path / "pipe")


def test_the_package_is_there_at_once_and_complete() -> None:
    """Torch takes seconds: a command that does not need it, or is stopped meanwhile, must not wait for it."""
    code = (
        "import lazydiff, lazydiff.cli, sys; assert 'torch' not in sys.modules; "
        "assert all(getattr(lazydiff, name) is not None for name in lazydiff.__all__); "
        "assert {*lazydiff.__all__} == {*lazydiff._MODULES} and {*lazydiff.__all__} <= {*dir(lazydiff)}"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def strip(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Destination, source and mask of a long strip with one known end."""
    draw = torch.Generator().manual_seed(0)
    destination, source = (torch.rand(1, 3, height, width, generator=draw) for _ in range(2))
    mask = torch.ones(1, 1, height, width)
    mask[..., 0] = 0
    return destination, source, mask


@pytest.mark.parametrize("gradients", ["source", "mixed"])
def test_a_long_thin_hole_is_blended_exactly(gradients: module.Blend) -> None:
    destination, source, mask = strip(4, 4000)
    result = poisson_blend(destination, source, mask, gradients)
    exact = poisson_blend(destination.double(), source.double(), mask.double(), gradients, iterations=200)
    assert 255 * (result - exact).abs().max() < 0.1  # of a grey level; it was 1.7
