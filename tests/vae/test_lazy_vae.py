"""The lazy decode and encode against the full ones, for both layouts of Stable Diffusion's VAE, tiny and random."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tiny_vaes import CELL, OriginalVAE, diffusers_vae
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lazydiff.sparse.boxes import Box
from lazydiff.vae import lazy_vae, passes
from lazydiff.vae.lazy_vae import full_decode, full_encode, lazy_decode, lazy_encode, plan_decode
from lazydiff.vae.stages import decoder_stages, encoder_stages, needed, reached

SAME = 1e-5  # the same sums in another order, through thirty normalised layers, for values of about -1…1


@pytest.fixture(scope="module", params=["diffusers", "original"])
def vae(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    vae = diffusers_vae() if request.param == "diffusers" else OriginalVAE().eval().requires_grad_(False)
    for name, part in vae.named_parameters():
        if "norm" in name:  # they start at one and zero, which would hide a mistake
            part.add_(torch.randn_like(part) * 0.2)
    for half in (vae.encoder, vae.decoder):
        half.conv_out.weight.mul_(0.25)  # so that values lie in about -1…1, as those of images do
    return vae


def reference(vae: Any, x: Tensor, half: str) -> Tensor:
    """What the VAE itself gives."""
    if isinstance(vae, OriginalVAE):
        return getattr(vae, f"{half}r")(x)
    return vae.decode(x).sample if half == "decode" else vae.encode(x).latent_dist.parameters


def mask_of(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Tensor:
    """Boxes as top, left, bottom, right, in latents."""
    mask = torch.zeros(1, 1, CELL * size[0], CELL * size[1])
    for box in boxes:
        Box(*box).scaled(CELL).of(mask).fill_(1)
    return mask


SIZE = (26, 34)
MASKS = {
    "interior": [(11, 14, 15, 19)],
    "border": [(9, 0, 14, 6)],
    "corner": [(0, 0, 4, 5)],
    "far corner": [(21, 30, 26, 34)],
    "full height": [(0, 10, 26, 14)],
    "several": [(0, 0, 2, 2), (10, 30, 14, 33), (23, 3, 26, 5)],
    "one cell": [(13, 17, 14, 18)],
}


@pytest.mark.parametrize("half", ["decode", "encode"])
def test_a_full_pass_is_the_vaes_own(vae, half):
    x = torch.randn(2, 4, *SIZE) if half == "decode" else torch.rand(2, 3, 8 * SIZE[0], 8 * SIZE[1]) * 2 - 1
    state = getattr(lazy_vae, f"full_{half}")(vae, x)
    assert torch.equal(state.output, reference(vae, x, half))


@pytest.mark.parametrize("boxes", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("half", ["decode", "encode"])
def test_unchanged_input_gives_the_full_result(vae, half, boxes):
    mask = mask_of(SIZE, *boxes)
    x = torch.randn(2, 4, *SIZE) if half == "decode" else torch.rand(2, 3, *mask.shape[2:]) * 2 - 1
    full = getattr(lazy_vae, f"full_{half}")(vae, x)
    blank = full._replace(output=torch.full_like(full.output, 7))
    result = getattr(lazy_vae, f"lazy_{half}")(vae, x, blank, mask, limit=math.inf)
    assert result.lazy and result.plan.boxes
    inside = torch.zeros_like(full.output, dtype=torch.bool)
    for box in result.plan.boxes:
        box.of(inside).fill_(True)
    assert inside[:, :1][F.interpolate(mask, inside.shape[2:]).expand(2, -1, -1, -1) > 0].all()
    assert (result.output[~inside] == 7).all()
    torch.testing.assert_close(result.output[inside], full.output[inside], atol=SAME, rtol=0)
    for fresh, old in zip(result.state.keys + result.state.values, full.keys + full.values, strict=True):
        torch.testing.assert_close(fresh, old, atol=SAME, rtol=0)


def test_boxes_are_needed_to_the_last_row():
    """Margins in the decoder of Stable Diffusion, in rows before each group of stages, and how far the halves reach."""
    stages = decoder_stages(diffusers_vae())
    target, size = Box(512, 512, 520, 520), (128, 128)
    box = needed(stages, target, size)[0]
    assert box == Box(64 - 18, 64 - 18, 65 + 18, 65 + 18)
    encoder = encoder_stages(diffusers_vae())
    assert reached(encoder, Box(512, 512, 520, 520), (1024, 1024)) == Box(64 - 14, 64 - 14, 64 + 14, 64 + 14)
    # Latent r depends on pixels 8r - 101 … 8r + 115 (two blocks per level, as published).
    before = needed(encoder, Box(64, 64, 65, 65), (1024, 1024))[0]
    assert before == Box(512 - 101, 512 - 101, 512 + 116, 512 + 116)


def dependence(stages: Any, x: Tensor, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Box:
    """By gradients: the input that an output pixel depends on, without norms and attention."""
    monkeypatch.setattr(passes.FullPass, "norm", lambda self, module, patches, silu=True: patches)
    monkeypatch.setattr(passes.FullPass, "attend", lambda self, q, k, v: q)
    x = x.double().requires_grad_()
    run = passes.FullPass((2, 2))
    whole = Box.whole((x.shape[2] * 8, x.shape[3] * 8))
    passes.run_stages(run, stages, x, [whole])[0].x[0, 0, place[0], place[1]].backward()
    rows, columns = (x.grad[0].abs().amax((0, axis)).nonzero().flatten().tolist() for axis in (2, 1))
    return Box(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)


@pytest.mark.parametrize("row, column", [(160, 163), (164, 5), (3, 319)])
def test_the_margin_is_what_gradients_say(monkeypatch, row, column):
    vae = diffusers_vae(block_out_channels=(4, 4, 4, 4), norm_num_groups=2).double()
    stages = decoder_stages(vae)
    pixel = Box(row, column, row + 1, column + 1)
    found = dependence(stages, torch.randn(1, 4, 40, 40), (row, column), monkeypatch)
    assert needed(stages, pixel, (40, 40))[0] == found


def test_work_is_what_torch_counts(vae):
    x, mask = torch.randn(1, 4, *SIZE), mask_of(SIZE, *MASKS["several"])
    # torch does not count its fused attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as full:
        state = full_decode(vae, x)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as lazy:
        plan = lazy_decode(vae, x, state, mask).plan
    assert 2 * plan.full == full.get_total_flops()
    assert 2 * plan.macs == lazy.get_total_flops()


def published() -> AutoencoderKL:
    with torch.device("meta"):
        return diffusers_vae(block_out_channels=(128, 256, 512, 512), norm_num_groups=32)


def test_work_at_ten_percent_of_a_real_vae():
    """A square hole of 10 % of 1024 px, wherever it lies; the published sizes, counted and not run."""
    vae, side = published(), 324
    shares = []
    for top, left in ((350, 350), (347, 353), (0, 0), (700, 300)):
        mask = torch.zeros(1, 1, 1024, 1024)
        mask[..., top : top + side, left : left + side] = 1
        plan = plan_decode(vae, mask)
        shares.append(plan.share)
    assert plan.full == pytest.approx(5.24e12, rel=0.01)  # the spec's count
    assert max(shares) < 0.16


def test_boxes_far_apart_are_decoded_separately():
    vae = published()
    far = plan_decode(vae, mask_of((128, 128), (5, 5, 15, 15), (100, 110, 110, 120)))
    near = plan_decode(vae, mask_of((128, 128), (5, 5, 15, 15), (5, 21, 15, 31)))
    assert len(far.boxes) == 2 and far.share < 0.1
    assert len(near.boxes) == 1
    assert plan_decode(vae, mask_of((128, 128))).boxes == ()


def test_too_large_a_hole_is_decoded_in_full(vae):
    x, edited = torch.randn(2, 1, 4, *SIZE)
    mask = mask_of(SIZE, (0, 0, 24, 30))
    result = lazy_decode(vae, edited, full_decode(vae, x), mask)
    assert not result.lazy and result.plan.share > 0.6
    assert torch.equal(result.output, full_decode(vae, edited).output)


def test_an_empty_mask_changes_nothing(vae):
    x = torch.randn(1, 4, *SIZE)
    state = full_decode(vae, x)
    result = lazy_decode(vae, x, state, mask_of(SIZE))
    assert result.lazy and result.plan.macs == 0 and torch.equal(result.output, state.output)


def test_one_canvas_serves_several_samples(vae):
    canvas, mask = torch.randn(1, 4, *SIZE), mask_of(SIZE, *MASKS["interior"])
    samples = canvas.repeat(3, 1, 1, 1)
    Box(*MASKS["interior"][0]).of(samples).normal_()
    state = full_decode(vae, canvas)
    together = lazy_decode(vae, samples, state, mask)
    for i in range(3):
        alone = lazy_decode(vae, samples[i : i + 1], state, mask)
        torch.testing.assert_close(together.output[i : i + 1], alone.output, atol=SAME, rtol=0)
    assert state.output.shape[0] == 1


def edited(latent: Tensor, box: Box, strength: float = 1.5) -> Tensor:
    """Another content inside a box, brighter on the whole: what moves statistics."""
    latent = latent.clone()
    part = box.of(latent)
    part.copy_(torch.randn_like(part) + strength)
    return latent


def test_fresh_statistics_are_better_than_stale_ones(monkeypatch):
    """Mean error inside the hole against a full decode, over a few edits.

    The order of the variants is the claim; random weights say nothing on how large the errors of a trained VAE are.
    """
    vae = diffusers_vae(block_out_channels=(16, 16, 32, 32), norm_num_groups=4, layers_per_block=1)
    size, box = (32, 32), Box(11, 10, 21, 20)
    region = box.scaled(CELL)
    errors = dict.fromkeys(["stale", "stale statistics", "without probe", "fresh"], 0.0)
    for _ in range(3):
        latent = torch.randn(1, 4, *size)
        state, after = full_decode(vae, latent), edited(latent, box)
        full = full_decode(vae, after).output
        for variant in errors:
            with monkeypatch.context() as patch:
                if "stale" in variant:
                    patch.setattr(passes.Statistics, "updated", lambda self, patches, probe: self)
                if variant == "stale":
                    patch.setattr(passes, "put", lambda whole, patches: whole)  # of keys and values
                if variant == "without probe":
                    patch.setattr(lazy_vae, "_probe", lambda boxes, size: None)
                result = lazy_decode(vae, after, state, mask_of(size, box), limit=1)
            errors[variant] += float((region.of(result.output) - region.of(full)).abs().mean() / full.std() / 3)
    others = [error for variant, error in errors.items() if variant != "fresh"]
    assert errors["fresh"] < 0.5 * min(others), errors
    assert errors["without probe"] < errors["stale statistics"], errors


def test_chained_edits_keep_their_state(vae):
    """Nine edits, each from the state of the last: no larger, never written to, and errors that do not pile up.

    Against a full decode, inside the hole. A second edit sees what the first left undone elsewhere; a ninth no more.
    """
    latent = torch.randn(1, 4, *SIZE)
    state = first = full_decode(vae, latent)
    before = [x.clone() for x in tensors(first)]
    places = [Box(2, 3, 7, 8), Box(15, 20, 20, 26), Box(4, 22, 9, 27)]
    errors = []
    for i in range(9):
        box = places[i % 3]
        latent = edited(latent, box, strength=0.5)
        result = lazy_decode(vae, latent, state, mask_of(SIZE, box))
        assert result.lazy
        state, full, region = result.state, full_decode(vae, latent).output, box.scaled(CELL)
        errors.append(float((region.of(result.output) - region.of(full)).abs().mean() / full.std()))
    assert all(torch.equal(x, old) for x, old in zip(tensors(first), before, strict=True))
    assert [x.shape for x in tensors(state)] == [x.shape for x in before]
    assert max(errors) < 0.3 and sum(errors[6:]) < 3 * sum(errors[1:4]), errors


def tensors(state: passes.VAEState) -> list[Tensor]:
    return [state.output, *(x for one in state.statistics for x in one), *state.keys, *state.values]


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision(dtype, tolerance):
    """Statistics stay in float32; images differ by the rounding of their own precision."""
    vae = diffusers_vae(layers_per_block=1).to(dtype)
    x, mask = torch.randn(1, 4, 16, 20, dtype=dtype), mask_of((16, 20), (5, 5, 9, 10))
    full = full_decode(vae, x)
    result = lazy_decode(vae, x, full, mask, limit=1)
    assert result.output.dtype == dtype and all(x.dtype == torch.float32 for one in full.statistics for x in one)
    assert (result.output - full.output).abs().max() < tolerance


def test_an_odd_number_of_latents():
    """Statistics are kept by cells of one latent then."""
    vae = diffusers_vae(layers_per_block=1)
    latent, mask = torch.randn(1, 4, 15, 21), mask_of((15, 21), (5, 12, 9, 21))
    full = full_decode(vae, latent)
    result = lazy_decode(vae, latent, full._replace(output=torch.zeros_like(full.output)), mask, limit=math.inf)
    assert full.statistics[0].cells.shape[-2:] == (15, 21) and result.plan.probe
    for box in result.plan.boxes:
        torch.testing.assert_close(box.of(result.output), box.of(full.output), atol=SAME, rtol=0)


def test_sizes_that_do_not_fit_say_so(vae):
    state = full_decode(vae, torch.randn(2, 4, 16, 16))
    latent = torch.randn(2, 4, 16, 24)
    with pytest.raises(ValueError, match="decoded at 128x128"):
        lazy_decode(vae, latent, state, mask_of((16, 24)))
    with pytest.raises(ValueError, match="the canvas is 128x128, the mask is 192x128"):
        lazy_decode(vae, latent[..., :16], state, mask_of((16, 24)))
    with pytest.raises(ValueError, match="2 pictures, the edit 3"):
        lazy_decode(vae, torch.randn(3, 4, 16, 16), state, mask_of((16, 16)))
    with pytest.raises(ValueError, match="100x64.*multiples of 8"):
        full_encode(vae, torch.rand(1, 3, 64, 100))
    with pytest.raises(ValueError, match="encoded at another size"):
        lazy_encode(vae, torch.rand(1, 3, 64, 64), full_encode(vae, torch.rand(1, 3, 64, 128)), mask_of((8, 8)))


def test_unknown_parts_are_refused():
    vae = diffusers_vae()
    vae.decoder.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="extra"):
        full_decode(vae, torch.randn(1, 4, 8, 8))
