"""A canvas from edit to edit: what stays stays, what it costs and keeps does not grow."""

from __future__ import annotations

import pytest
import torch
from samples import scene
from tiny_vaes import CELL, diffusers_vae
from torch import Tensor

from lazydiff import pipeline
from lazydiff.canvas import Canvas, context, finish, masked_latent, start
from lazydiff.masks import to_grid
from lazydiff.model import LazyDiffusion
from lazydiff.vae_passes import VAEState
from lazydiff.vaes import LazyVAE, WholeVAE

SIZE = 24, 32  # latents
SAME = 1e-5  # the same sums in another order, through thirty normalised layers


@pytest.fixture(scope="module")
def vae() -> LazyVAE:
    torch.manual_seed(0)
    vae = diffusers_vae(layers_per_block=1)
    vae.decoder.conv_out.weight.mul_(0.25)  # so that values lie in about -1…1, as those of images do
    return LazyVAE(vae, scale=0.5, shift=0.1)


def picture(rows: int = 1) -> Tensor:
    return torch.rand(rows, 3, CELL * SIZE[0], CELL * SIZE[1])


def hole(top: int, left: int, height: int = 20, width: int = 24) -> Tensor:
    """A mask, in pixels."""
    mask = torch.zeros(1, 1, CELL * SIZE[0], CELL * SIZE[1])
    mask[..., top : top + height, left : left + width] = 1
    return mask


def cells(mask: Tensor, like: Tensor) -> Tensor:
    return (to_grid(mask, CELL) > 0).expand_as(like)


def tensors(canvas: Canvas) -> list[Tensor]:
    """All that a canvas holds."""

    def of(state: VAEState | None) -> list[Tensor]:
        if state is None:
            return []
        return [state.output, *(x for one in state.statistics for x in one), *state.keys, *state.values]

    return [canvas.image, canvas.latent, *of(canvas.decoded), *of(canvas.encoded)]


def test_twenty_edits(vae: LazyVAE) -> None:
    first = canvas = start(vae, picture())
    touched, shares = torch.zeros_like(first.image[:, :1]), []
    for number in range(20):
        mask = hole(37 * number % 170, 53 * number % 150)  # 83 columns on the right stay untouched
        samples = canvas.latent + torch.randn_like(canvas.latent)  # everywhere: only the hole's may count
        before, canvas = canvas, finish(canvas, samples, mask)
        assert torch.equal(canvas.latent[cells(mask, samples)], samples[cells(mask, samples)])
        assert not torch.equal(canvas.image, before.image)
        touched, shares = torch.maximum(touched, mask), [*shares, canvas.share]
    outside, still = (touched == 0).expand_as(first.image), ~cells(touched, first.latent)
    assert outside.any() and torch.equal(canvas.image[outside], first.image[outside])
    assert still.any() and torch.equal(canvas.latent[still], first.latent[still])
    assert max(shares) < 0.6
    assert [x.shape for x in tensors(canvas)] == [x.shape for x in tensors(first)]


def test_the_twentieth_edit_does_the_work_of_the_first(vae: LazyVAE) -> None:
    canvas, mask, shares = start(vae, picture()), hole(90, 100), []
    for _ in range(20):
        canvas = finish(canvas, torch.randn_like(canvas.latent), mask)
        shares.append(canvas.share)
    assert len(set(shares)) == 1 and shares[0] < 0.5


def test_a_canvas_is_never_written_to(vae: LazyVAE) -> None:
    canvas = start(vae, picture())
    before = [x.clone() for x in tensors(canvas)]
    masked_latent(canvas, hole(50, 50))
    finish(canvas, torch.randn(2, *canvas.latent.shape[1:]), hole(50, 50))
    assert all(torch.equal(x, old) for x, old in zip(tensors(canvas), before, strict=True))


@pytest.mark.parametrize("blend", ["poisson", "mixed", "paste"])
def test_the_same_latents_decode_as_in_full(vae: LazyVAE, blend: pipeline.Blend) -> None:
    """A lazy decode is exact as long as no statistics change."""
    canvas, mask = start(vae, picture()), hole(70, 90)
    edited = finish(canvas, canvas.latent, mask, blend)
    assert edited.share < 0.6
    expected = pipeline.composite(canvas.image, vae.decode(canvas.latent).output, mask, blend)
    torch.testing.assert_close(edited.image, expected, atol=SAME, rtol=0)
    assert canvas.decoded and edited.decoded
    torch.testing.assert_close(edited.decoded.output, canvas.decoded.output, atol=SAME, rtol=0)


def test_without_a_state_the_first_edit_is_decoded_in_full(vae: LazyVAE) -> None:
    canvas, mask = start(vae, picture())._replace(decoded=None, encoded=None), hole(70, 90)
    edited = finish(canvas, torch.randn_like(canvas.latent), mask, "paste")
    inside = (mask > 0).expand_as(edited.image)
    assert edited.share == 1 and edited.decoded is not None and edited.encoded is None
    assert torch.equal(edited.image[inside], vae.decode(edited.latent).output[inside])
    assert finish(edited, torch.randn_like(canvas.latent), mask).share < 0.6


def test_what_a_context_encoder_sees(vae: LazyVAE) -> None:
    """Nothing of the hole, and in cells that the hole does not reach what was encoded before, bit for bit.

    Where it does, all norms know of the grey: against a full encode of the masked picture, after an edit, the error is
    a small part of the latents' deviation; of weights that are trained this says nothing.
    """
    canvas = start(vae, torch.rand(1, 3, 64, 1024))  # far wider than an encoder reaches, 115 px on each side
    masks = torch.zeros(2, 1, 1, 64, 1024)
    masks[0, ..., 10:40, 900:930], masks[1, ..., 20:50, 5:40] = 1, 1
    canvas = finish(canvas, canvas.latent + torch.randn_like(canvas.latent), masks[0])
    seen = masked_latent(canvas, masks[1])
    other = canvas._replace(image=torch.where(masks[1] > 0, torch.rand_like(canvas.image), canvas.image))
    assert torch.equal(masked_latent(other, masks[1]), seen)
    own = vae.encode(canvas.image, canvas.encoded, torch.zeros_like(masks[1])).output
    assert torch.equal(seen[..., 40:], own[..., 40:]) and not torch.equal(seen, own)
    full = vae.encode(canvas.image * (1 - masks[1]) + masks[1] / 2).output
    assert float((seen - full).abs().mean() / full.std()) < 0.05


def test_without_encoding_again_the_hole_alone_is_grey(vae: LazyVAE) -> None:
    canvas, mask = start(vae, picture(), encode_again=False), hole(60, 60)
    canvas = finish(canvas, torch.randn_like(canvas.latent), hole(90, 100))
    seen, inside = masked_latent(canvas, mask), cells(mask, canvas.latent)
    assert torch.equal(seen[~inside], canvas.latent[~inside]) and canvas.encoded is None
    flat = vae.encode(torch.full_like(canvas.image, 0.5)).output[..., 8:-8, 8:-8]
    # One latent for all of the hole: those of a grey picture differ with their distance from its edge.
    assert (seen[:, :, 9, 9] - flat.mean((2, 3))).abs().max() < 0.5 * canvas.latent.std()


@pytest.mark.parametrize("lazy", [True, False])
def test_variations_are_canvases(vae: LazyVAE, model: LazyDiffusion, lazy: bool) -> None:
    canvas = start(vae if lazy else WholeVAE(model.latent), picture())
    samples, mask = torch.randn(3, *canvas.latent.shape[1:]), hole(60, 60)
    together = finish(canvas, samples, mask)
    again = finish(together, torch.flip(samples, (0,)), hole(10, 100))
    for i in range(3):
        alone = finish(canvas, samples[i : i + 1], mask)
        torch.testing.assert_close(together.image[i : i + 1], alone.image, atol=SAME, rtol=0)
        alone = finish(alone, samples[2 - i : 3 - i], hole(10, 100))
        torch.testing.assert_close(again.image[i : i + 1], alone.image, atol=SAME, rtol=0)


def test_holes_of_one_canvas_are_all_filled(vae: LazyVAE) -> None:
    """As if one after the other: where they overlap the last counts. With variations, hole by hole for each of them."""
    canvas, masks = start(vae, picture()), [hole(60, 60), hole(70, 70), hole(130, 10)]
    samples = torch.randn(6, *canvas.latent.shape[1:])
    merged = finish(canvas, samples, torch.cat(masks))
    assert len(merged.image) == 2
    for variation in range(2):
        one = canvas
        for mask, sample in zip(masks, samples[3 * variation :].split(1), strict=False):
            one = finish(one, sample, mask)
        torch.testing.assert_close(merged.image[variation], one.image[0], atol=SAME, rtol=0)
        assert torch.equal(merged.latent[variation], one.latent[0])


def test_an_edit_is_the_pipelines(model: LazyDiffusion) -> None:
    """First edit with a model of ours: the same picture, bit for bit."""
    image, mask, caption = scene(1)
    canvas = start(WholeVAE(model.latent), image)
    told = context(model, canvas, mask)
    latents = pipeline.to_latents(told, pipeline.sample(model, told, [caption] * 2, [3, 4]))
    expected = pipeline.edit(model, image, mask, caption, [3, 4])
    assert torch.equal(finish(canvas, latents, mask).image, expected)


def test_edits_in_the_latents_are_not_encoded_again(model: LazyDiffusion) -> None:
    """The next context is of the latents that were sampled, which pixels in 0…1 cannot hold."""
    image, mask, _ = scene(2)
    canvas = start(WholeVAE(model.latent), image)
    samples = 3 * torch.randn_like(canvas.latent)
    told = context(model, finish(canvas, samples, mask), mask)
    inside = cells(mask, samples)
    kept = pipeline.to_latents(told, told.hole.gather(told.canvas))
    assert torch.equal(kept[inside], samples[inside]) and torch.equal(kept[~inside], canvas.latent[~inside])


def test_videos_latents_have_one_frame_more(model: LazyDiffusion) -> None:
    class Frames(WholeVAE):
        def encode(self, *args: Tensor) -> object:
            return super().encode(*args)._replace(output=super().encode(*args).output.unsqueeze(2))

        def decode(self, latent: Tensor, *args: object) -> object:
            return super().decode(latent[:, :, 0])

    image, mask, _ = scene(3)
    plain, framed = (start(kind(model.latent), image) for kind in (WholeVAE, Frames))
    samples = torch.randn_like(plain.latent)
    edited = finish(framed, samples.unsqueeze(2), mask)
    assert torch.equal(edited.image, finish(plain, samples, mask).image) and edited.latent.ndim == 5


def test_an_empty_mask_changes_nothing(vae: LazyVAE) -> None:
    canvas = start(vae, picture())
    edited = finish(canvas, torch.randn_like(canvas.latent), torch.zeros_like(hole(0, 0)))
    assert torch.equal(edited.image, canvas.image) and torch.equal(edited.latent, canvas.latent) and not edited.share


def test_what_does_not_go_together_is_refused_in_words(vae: LazyVAE, model: LazyDiffusion) -> None:
    canvas, mask = start(vae, picture(2)), hole(0, 0)
    with pytest.raises(ValueError, match="2 pictures and 1 holes, and there are 3 latents"):
        finish(canvas, torch.randn(3, *canvas.latent.shape[1:]), mask)
    with pytest.raises(ValueError, match="2 pictures, and there are 3 masks"):
        finish(canvas, canvas.latent, mask.repeat(3, 1, 1, 1))
    with pytest.raises(ValueError, match="of 4 channels, 31×24, the canvas's of 4 channels, 32×24"):
        finish(canvas, canvas.latent[..., 1:], mask)
    with pytest.raises(ValueError, match="the mask is 256×184 and the canvas 256×192"):
        masked_latent(canvas, mask[..., 8:, :])
    with pytest.raises(ValueError, match="not numbers"):
        finish(canvas, canvas.latent * torch.nan, mask)
    with pytest.raises(ValueError, match="multiples of 8"):
        start(vae, torch.rand(1, 3, 100, 64))
