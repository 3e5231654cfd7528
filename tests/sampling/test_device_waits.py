"""Steps without waste: a sampling's step never waits for its device."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from samples import scene
from tiny_networks import SMALL, TINY, random_inputs, random_mask, random_prompts
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import NetworkConfig
from lazydiff.model.decoder import LazyDecoder, TextKeys
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.encode import encode
from lazydiff.sampling.denoiser import lazy_denoiser


class OnOneDevice(TorchDispatchMode):
    """Fails on what reads from the host or writes to it. The device is torch's meta device, whose tensors have no
    values: asking for one is an error by itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor):
                assert tensor.device.type == "meta", f"{func} takes part on the host"
        return out


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("rows_of_time", [1, 2])
@pytest.mark.parametrize("counts", [(5, 5), (5, 2)], ids=["even", "ragged"])
@pytest.mark.parametrize("config", [TINY, SMALL], ids=["micro-conditions", "plain"])
def test_a_decoder_call_stays_on_its_device(config: NetworkConfig, counts: tuple[int, ...], rows_of_time: int) -> None:
    decoder = LazyDecoder(config, device="meta").eval()
    hole = HoleTokens.from_grid_mask(random_mask((4, 6), *counts)).to("meta")
    x, t, context = (each.to("meta") for each in random_inputs(config, hole))
    text, mask = (each.to("meta") for each in random_prompts(config, 12, 4))
    given = x, t[:rows_of_time], decoder.text_keys(text, mask), hole, context
    decoder(*given)  # the first of a sampling places positions and packing
    with OnOneDevice():
        out = decoder(*given)
    assert out.shape[:2] == (2, 5)


def on_meta(text: TextKeys) -> TextKeys:
    assert text.mask is not None
    return TextKeys([(k.to("meta"), v.to("meta")) for k, v in text.blocks], text.mask.to("meta"))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_step_of_a_sampling_stays_on_its_device(model: LazyDiffusion, guidance: float) -> None:
    """Two canvases with holes of different sizes."""
    context = encode(model, *(torch.cat(each) for each in zip(scene(1)[:2], scene(2)[:2], strict=True)))
    context = context._replace(
        hole=context.hole.to("meta"), tokens=context.tokens.to("meta"), canvas=context.canvas.to("meta")
    )
    there = deepcopy(model).to("meta")
    there.prompt = lambda prompts: on_meta(model.prompt(prompts))  # once for a sampling, and T5 may wait
    denoise = lazy_denoiser(there, context, ["a red tree", "a"], guidance)
    z = torch.empty(2, context.hole.count, context.canvas.shape[-1], device="meta")
    denoise(z, 0.9)
    with OnOneDevice():
        clean = denoise(z, 0.6)
    assert clean.shape == z.shape
