"""Steps of few shapes against plain calls of the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from lazydiff.networks.captured import CapturedDecoder, capture
from samples import scene
from test_networks import SMALL, TINY, random_inputs, random_mask, random_prompts

from lazydiff.core.tokens import HoleTokens
from lazydiff.model.config import NetworkConfig
from lazydiff.model.context import LazyContext
from lazydiff.model.decoder import LazyDecoder
from lazydiff.model.layers import sdpa, sinusoid
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit, encode, sample

GRID = (4, 6)
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
# fp32 sums in another order differ by a few times 6e-8 of the largest value; a GPU's matrix products by more.
CLOSE = {"cpu": 1e-6, "cuda": 1e-4}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("bucket", [1, 8, 64])
@pytest.mark.parametrize("config", [TINY, SMALL], ids=["patch 2", "patch 1"])
def test_steps_equal_the_decoders(config: NetworkConfig, bucket: int, device: str) -> None:
    """One after another, as samplings follow each other: other holes and prompts, of fewer tokens than the last ones,
    see nothing of those; and what was returned is not overwritten."""
    decoder = LazyDecoder(config).to(device).eval()
    captured, results = CapturedDecoder(decoder, bucket), []
    for counts in ((17, 17), (18, 3), (17, 17), (1, 0), (24, 24), (0, 0)):
        hole = HoleTokens.from_grid_mask(random_mask(GRID, *counts).to(device))
        text = decoder.text_keys(*(each.to(device) for each in random_prompts(config, 12, 5)))
        for t in (torch.tensor([500], device=device), torch.tensor([900, 20], device=device)):
            x, _, context = (each.to(device) for each in random_inputs(config, hole))
            results.append((captured(x, t, text, hole, context), decoder(x, t, text, hole, context), hole.valid))
    for ours, expected, valid in results:
        assert ours.shape == expected.shape
        if valid.any():
            assert (ours - expected)[valid].abs().max() <= CLOSE[device] * expected[valid].abs().max()


def test_holes_of_one_bucket_share_a_shape() -> None:
    decoder = LazyDecoder(TINY).eval()
    captured, text = CapturedDecoder(decoder, 8), decoder.text_keys(*random_prompts(TINY, 12))
    for count in (1, 7, 8, 3, 9, 16):
        hole = HoleTokens.from_grid_mask(random_mask(GRID, count))
        x, t, context = random_inputs(TINY, hole)
        captured(x, t, text, hole, context)
    assert [step.x.shape[1] for step in captured.steps.values()] == [8, 16]


def test_only_what_is_new_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of prompts are the bulk of what a step reads."""
    decoder = LazyDecoder(TINY).eval()
    captured, text = CapturedDecoder(decoder), decoder.text_keys(*random_prompts(TINY, 12))
    hole = HoleTokens.from_grid_mask(random_mask(GRID, 5))
    x, t, context = random_inputs(TINY, hole)
    first = captured(x, t, text, hole, context)
    (step,) = captured.steps.values()
    monkeypatch.setattr(step, "remember", lambda *given: pytest.fail("copied again"))
    assert torch.equal(captured(x, t, text, hole, context), first)
    assert not torch.equal(captured(x + 1, t, text, hole, context), first)


@pytest.mark.parametrize("outer", [torch.inference_mode, torch.no_grad])
def test_memory_made_in_one_mode_serves_in_another(outer: type) -> None:
    decoder = LazyDecoder(TINY).eval()
    captured, hole = CapturedDecoder(decoder), HoleTokens.from_grid_mask(random_mask(GRID, 5))
    x, t, context = random_inputs(TINY, hole)
    with outer():
        text = decoder.text_keys(*random_prompts(TINY, 12))
        captured(x, t, text, hole, context)
    expected = decoder(x + 1, t, text, hole, context)
    torch.testing.assert_close(captured(x + 1, t, text, hole, context), expected, atol=1e-5, rtol=0)


def canvases(model: LazyDiffusion) -> LazyContext:
    return encode(model, *(torch.cat(each) for each in zip(scene(1)[:2], scene(2)[:2], strict=True)))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_samplings_equal_those_without(model: LazyDiffusion, device: str) -> None:
    """Two canvases of different holes with guidance. Steps amplify the difference of sums in another order."""
    model = deepcopy(model).to(device)
    image, mask = (torch.cat(each).to(device) for each in zip(scene(1)[:2], scene(2)[:2], strict=True))
    context = encode(model, image, mask)
    given = model, context, ["a red tree", "a boat"], [3, 4]
    expected = sample(*given)
    model.capture()
    for _ in range(2):  # the second from graphs that are there
        ours, valid = sample(*given), context.hole.valid
        assert (ours - expected)[valid].abs().max() <= 10 * CLOSE[device] * expected.abs().max()


def test_an_edit_by_captured_steps(model: LazyDiffusion) -> None:
    image, mask, prompt = scene(3)
    plain, model = edit(model, image, mask, prompt, [1, 2]), deepcopy(model)
    model.capture(bucket=16)
    assert model.captured is not None
    assert (edit(model, image, mask, prompt, [1, 2]) - plain).abs().max() <= 1e-4  # of 0…1, behind a Poisson solver
    assert model.captured.steps


@pytest.mark.gpu
def test_graphs_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on, nothing of the decoder is run by the host."""
    decoder = LazyDecoder(TINY).cuda().eval()
    captured, hole = CapturedDecoder(decoder), HoleTokens.from_grid_mask(random_mask(GRID, 5).cuda())
    x, t, context = (each.cuda() for each in random_inputs(TINY, hole))
    text = decoder.text_keys(*(each.cuda() for each in random_prompts(TINY, 12)))
    first = captured(x, t, text, hole, context)
    monkeypatch.setattr(LazyDecoder, "forward", lambda *given: pytest.fail("run by the host"))
    assert torch.equal(captured(x, t, text, hole, context), first)


def test_what_cannot_be_captured_is_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*given: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    for name in ("CUDAGraph", "Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *given: Stub())
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    run = lambda: torch.ones(1)  # noqa: E731
    assert capture(run) is run
    assert "steps are not captured, because torch says: operation not permitted" in caplog.text


class Stub:
    """What a stream is asked for where there is no GPU."""

    def wait_stream(self, other: Stub) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_samplings_in_half_precision(model: LazyDiffusion, dtype: torch.dtype) -> None:
    """The decoder's steps are, the sampler's tokens are not. bf16 rounds to 2^-9, fp16 to 2^-12 of each value; over two
    layers, guidance of 2 and three steps this comes to some ten times as much of the largest value."""
    half, context = deepcopy(model), canvases(model)
    half.decoder.to(dtype)
    given = context, ["a red tree", "a boat"], [3, 4]
    expected, ours, valid = sample(model, *given), sample(half, *given), context.hole.valid
    assert ours.dtype == torch.float32
    error = (ours - expected)[valid].abs().max() / expected.abs().max()
    assert 0 < error <= (2**-5 if dtype == torch.bfloat16 else 2**-8)


def test_sums_that_need_it_are_in_single_precision() -> None:
    """Statistics of LayerNorm, softmax and angles of the time embedding: what bf16 would spoil beyond its rounding."""
    x = torch.randn(2, 100, 1152) + 30
    norm = torch.nn.LayerNorm(1152, elementwise_affine=False, eps=1e-6)
    rounded = x.bfloat16()
    expected = norm(rounded.float())
    assert (norm(rounded) - expected).abs().max() <= 2**-8 * expected.abs().max()  # rounded once
    q, k = (3 * torch.randn(1, 2, 400, 64).bfloat16() for _ in "qk")
    v = torch.ones_like(q)
    assert (sdpa(q, k, v) - 1).abs().max() <= 2**-8  # weights summed in bf16 would be some percent off
    t = torch.tensor([999, 998])
    assert sinusoid(t).dtype == sinusoid(t.bfloat16()).dtype == torch.float32
    assert not torch.equal(*sinusoid(t))  # equal numbers in bf16


