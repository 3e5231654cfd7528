"""The windowed encoder inside the host, with its layers and each of its attention functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .in_process import Pack, scene

pytestmark = pytest.mark.host

WINDOW = 2


@pytest.fixture(scope="module")
def model(pack: Pack) -> Iterator[Any]:
    """The shipped model, model and VAE, with its encoder windowed."""
    model, _, vae = pack.call("LazyCheckpointLoader", "lazydiffusion-small.safetensors")
    model.model.encoder.model.window = WINDOW
    yield model, vae
    model.model.encoder.model.window = 0


@pytest.mark.parametrize("function", ["basic", "split", "sub_quad", "pytorch"])
def test_a_windowed_context_equals_the_librarys(
    pack: Pack, model: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sums in another order: about 1e-6 of values of order one, in four layers."""
    from comfy.ldm.modules import attention

    part = pack.part("nodes.host.model")
    monkeypatch.setattr(part, "optimized_attention", getattr(attention, f"attention_{function}"))
    image, mask, _ = scene(3)
    context, _ = pack.call("LazyContextEncode", *model, image.movedim(1, -1), mask[:, 0], 0, 0)

    library = pack.part("lazydiff.checkpoint").load_checkpoint(pack.part("lazydiff.checkpoint").SHIPPED)
    encode = pack.part("lazydiff.pipeline").encode
    exact = encode(library, image, mask)
    library.encoder.window = WINDOW
    expected = encode(library, image, mask)
    assert context.model == expected.model
    assert (expected.tokens - exact.tokens).abs().max() > 1e-3
    assert torch.allclose(context.tokens, expected.tokens, atol=1e-4)
