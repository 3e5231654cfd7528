"""A canvas from edit to edit: what stays stays, what it costs and keeps does not grow."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from samples import scene
from tiny_vaes import CELL, diffusers_vae
from torch import Tensor

from lazydiff.core.masks import to_grid
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.canvas import Canvas, edit_canvas, encode_canvas, masked_latent, open_canvas
from lazydiff.pipeline.decode import Blend, composite, to_latents
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.sample import sample
from lazydiff.vae import lazy_vae
from lazydiff.vae.canvas_vae import EarlierPass, LazyVAE, VAEOutput, WholeVAE

SIZE = 24, 32  # latents
SAME = 1e-5  # the same sums in another order, through thirty normalised layers


@pytest.fixture(scope="module")
def network() -> object:
    torch.manual_seed(0)
    network = diffusers_vae(layers_per_block=1)
    network.decoder.conv_out.weight.mul_(0.25)  # so that values lie in about -1…1, as those of images do
    return network


@pytest.fixture
def vae(network: object) -> LazyVAE:
    return LazyVAE(network, scale=0.5, shift=0.1)


def picture(rows: int = 1) -> Tensor:
    return torch.rand(rows, 3, CELL * SIZE[0], CELL * SIZE[1])


def hole(top: int, left: int, height: int = 20, width: int = 24) -> Tensor:
    """A mask, in pixels."""
    mask = torch.zeros(1, 1, CELL * SIZE[0], CELL * SIZE[1])
    mask[..., top : top + height, left : left + width] = 1
    return mask


def cells(mask: Tensor, like: Tensor) -> Tensor:
    return (to_grid(mask, CELL) > 0).expand_as(like)


def kept(canvas: Canvas) -> list[Tensor]:
    """All that a canvas carries for the edits after it."""
    return [
        tensor
        for x, state in (*canvas.encoded, *canvas.decoded)
        for tensor in [x, state.output, *(x for one in state.statistics for x in one), *state.keys, *state.values]
    ]


def edits(canvas: Canvas, masks: list[Tensor]) -> list[Canvas]:
    """Canvas after canvas; samples are other latents everywhere, of which only the hole's may count."""
    canvases = []
    for mask in masks:
        samples = canvas.latent + torch.randn_like(canvas.latent)
        canvas = edit_canvas(canvas, samples, mask)
        inside = cells(mask, samples)
        assert torch.equal(canvas.latent[inside], samples[inside])
        canvases.append(canvas)
    return canvases


def test_twenty_edits_leave_the_rest_alone(vae: LazyVAE) -> None:
    first = open_canvas(vae, picture())
    masks = [hole(37 * number % 170, 53 * number % 150) for number in range(20)]  # 83 columns are never touched
    canvases = edits(first, masks)
    touched, last = torch.cat(masks).amax(0, keepdim=True), canvases[-1]
    outside, still = (touched == 0).expand_as(first.image), ~cells(touched, first.latent)
    assert outside.any() and torch.equal(last.image[outside], first.image[outside])
    assert still.any() and torch.equal(last.latent[still], first.latent[still])
    assert max(canvas.share for canvas in canvases) < lazy_vae.LIMIT
    for before, after in zip(canvases, canvases[1:], strict=False):
        assert not torch.equal(before.image, after.image)


def test_the_twentieth_edit_costs_and_keeps_what_the_first_did(vae: LazyVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas, shares, sizes = open_canvas(vae, torch.rand(1, 3, 64, 1024)), [], []  # wider than an encoder reaches
    masks = torch.zeros(2, 1, 1, 64, 1024)
    masks[0, ..., 10:40, 900:930], masks[1, ..., 20:50, 5:40] = 1, 1
    passes: list[VAEOutput] = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda *given: passes.append(encode(*given)) or passes[-1])
    for number in range(20):
        mask = masks[number % 2]
        masked_latent(canvas, mask)
        (canvas,) = edits(canvas, [mask])
        shares.append(canvas.share)
        sizes.append(sum(tensor.numel() for tensor in kept(canvas)))
    assert len(set(shares[::2])) == len(set(shares[1::2])) == 1 and 0 < max(shares) < 0.2
    encoded = [each.share for each in passes]  # of each edit, with a grey hole and with a filled one
    assert len(encoded) == 40 and 0 < min(encoded) <= max(encoded) < lazy_vae.LIMIT
    assert all(encoded[i] == encoded[i % 4] for i in range(40))
    assert len(set(sizes)) == 1


def test_nothing_is_ever_written_to(vae: LazyVAE) -> None:
    canvas = open_canvas(vae, picture())
    held = [canvas.image, canvas.latent, *kept(canvas)]
    before = [x.clone() for x in held]
    masked_latent(canvas, hole(50, 50))
    edit_canvas(canvas, torch.randn(2, *canvas.latent.shape[1:]), hole(50, 50))
    assert all(torch.equal(x, old) for x, old in zip(held, before, strict=True))


def test_what_is_remembered_is_a_copy(vae: LazyVAE) -> None:
    """Written over by others, a latent is another one."""
    latent = torch.randn(1, 4, *SIZE)
    earlier: tuple[EarlierPass, ...] = vae.decode(latent).passes
    latent[..., 3:6, 3:6] += 1
    again = vae.decode(latent, earlier)
    assert again.planned and again.share < lazy_vae.LIMIT


@pytest.mark.parametrize("blend", ["poisson", "mixed", "paste"])
def test_an_edit_is_that_of_a_full_decode(vae: LazyVAE, blend: Blend) -> None:
    """Bit for bit, where the canvas carries no earlier pass; lazily, as exactly as a lazy decode is."""
    canvas, mask = open_canvas(vae, picture()), hole(70, 90)
    samples = canvas.latent + 0.5 * torch.randn_like(canvas.latent)
    lazily = edit_canvas(canvas, samples, mask, blend)
    full = edit_canvas(canvas._replace(encoded=(), decoded=()), samples, mask, blend)
    assert lazily.share < lazy_vae.LIMIT and full.share == 1
    expected = composite(canvas.image, vae.decode(full.latent).output, mask, blend)
    assert torch.equal(full.image, expected)
    # Lazily with other statistics, and random weights, with which they matter far more than with trained ones.
    inside = (mask > 0).expand_as(canvas.image)
    error, change = ((lazily.image - other)[inside].abs().mean() for other in (full.image, canvas.image))
    assert error < 0.5 * change, (error, change)


def test_an_earlier_canvas_can_be_gone_back_to(vae: LazyVAE) -> None:
    """However many edits ago: an edit is a function of its canvas alone."""
    canvas = open_canvas(vae, picture())
    samples = torch.randn_like(canvas.latent)
    first = edit_canvas(canvas, samples, hole(10, 10))
    edits(canvas, [hole(37 * i % 170, 53 * i % 220) for i in range(8)])
    again = edit_canvas(canvas, samples, hole(10, 10))
    assert torch.equal(again.image, first.image) and again.share == first.share < lazy_vae.LIMIT


def test_what_a_context_encoder_sees(vae: LazyVAE) -> None:
    """Nothing of the hole, and in cells that the hole does not reach what was encoded before, bit for bit.

    Where it does, all norms know of the grey: against a full encode of the masked picture, after an edit, the error is
    a small part of the latents' deviation; of weights that are trained this says nothing.
    """
    canvas = open_canvas(vae, torch.rand(1, 3, 64, 1024))  # far wider than an encoder reaches, 115 px on each side
    masks = torch.zeros(2, 1, 1, 64, 1024)
    masks[0, ..., 10:40, 900:930], masks[1, ..., 20:50, 5:40] = 1, 1
    (edited,) = edits(canvas, [masks[0]])
    seen = masked_latent(edited, masks[1])
    other = torch.where(masks[1] > 0, torch.rand_like(edited.image), edited.image)
    assert torch.equal(masked_latent(edited._replace(image=other), masks[1]), seen)
    assert torch.equal(seen[..., 40:80], canvas.latent[..., 40:80]) and not torch.equal(seen, canvas.latent)
    full = LazyVAE(vae.vae, vae.scale, vae.shift).encode(edited.image * (1 - masks[1]) + masks[1] / 2).output
    assert float((seen - full).abs().mean() / full.std()) < 0.05


@pytest.mark.parametrize("lazy", [True, False])
def test_variations_are_canvases(vae: LazyVAE, model: LazyDiffusion, lazy: bool) -> None:
    canvas = open_canvas(vae if lazy else WholeVAE(model.latent), picture())
    samples = canvas.latent + 0.5 * torch.randn(3, *canvas.latent.shape[1:])
    together = edit_canvas(canvas, samples, hole(60, 60))
    again = edit_canvas(together, samples.flip(0), hole(10, 100))
    assert not lazy or max(together.share, again.share) < lazy_vae.LIMIT
    for i in range(3):
        once = edit_canvas(canvas, samples[i : i + 1], hole(60, 60))
        assert torch.equal(together.latent[i : i + 1], once.latent)
        twice = edit_canvas(once, samples[2 - i : 3 - i], hole(10, 100))
        assert torch.equal(again.latent[i : i + 1], twice.latent)
        if not lazy:  # a batch is blended in other matrix products than a single picture: some units in the last place
            assert (together.image[i] - once.image[0]).abs().max() < 1e-5
            assert (again.image[i] - twice.image[0]).abs().max() < 1e-5
        outside = (torch.maximum(hole(60, 60), hole(10, 100)) == 0).expand_as(canvas.image)
        assert torch.equal(again.image[i : i + 1][outside], canvas.image[outside])


def test_holes_of_one_canvas_are_all_filled(model: LazyDiffusion) -> None:
    """As if one after the other: where they overlap the last counts. With variations, hole by hole for each of them."""
    canvas, masks = open_canvas(WholeVAE(model.latent), picture()), [hole(60, 60), hole(70, 70), hole(130, 10)]
    samples = torch.randn(6, *canvas.latent.shape[1:])
    merged = edit_canvas(canvas, samples, torch.cat(masks))
    assert len(merged.image) == 2
    for variation in range(2):
        one = canvas
        for mask, one_sample in zip(masks, samples[3 * variation :].split(1), strict=False):
            one = edit_canvas(one, one_sample, mask)
        torch.testing.assert_close(merged.image[variation], one.image[0], atol=SAME, rtol=0)
        assert torch.equal(merged.latent[variation], one.latent[0])


def test_an_edit_is_the_pipelines(model: LazyDiffusion) -> None:
    """First edit with a model of ours: the same picture, bit for bit."""
    image, mask, caption = scene(1)
    canvas = open_canvas(WholeVAE(model.latent), image)
    context = encode_canvas(model, canvas, mask)
    latents = to_latents(context, sample(model, context, [caption] * 2, [3, 4]))
    expected = edit(model, image, mask, caption, [3, 4])
    assert torch.equal(edit_canvas(canvas, latents, mask).image, expected)


def test_edits_in_the_latents_are_not_encoded_again(model: LazyDiffusion) -> None:
    """The next context is of the latents that were sampled, which pixels in 0…1 cannot hold."""
    image, mask, _ = scene(2)
    canvas = open_canvas(WholeVAE(model.latent), image)
    samples = 3 * torch.randn_like(canvas.latent)
    context = encode_canvas(model, edit_canvas(canvas, samples, mask), mask)
    inside = cells(mask, samples)
    latents = to_latents(context, context.hole.gather(context.canvas))
    assert torch.equal(latents[inside], samples[inside]) and torch.equal(latents[~inside], canvas.latent[~inside])


def test_videos_latents_have_one_dimension_more(model: LazyDiffusion) -> None:
    class Frames(WholeVAE):
        def encode(self, image: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
            return VAEOutput(super().encode(image).output.unsqueeze(2))

        def decode(self, latent: Tensor, earlier: Sequence[EarlierPass] = ()) -> VAEOutput:
            return super().decode(latent[:, :, 0])

    image, mask, _ = scene(3)
    plain, framed = (open_canvas(kind(model.latent), image) for kind in (WholeVAE, Frames))
    samples = torch.randn_like(plain.latent)
    edited = edit_canvas(framed, samples.unsqueeze(2), mask)
    assert torch.equal(edited.image, edit_canvas(plain, samples, mask).image) and edited.latent.ndim == 5


def test_an_empty_mask_changes_nothing(vae: LazyVAE) -> None:
    canvas = open_canvas(vae, picture())
    edited = edit_canvas(canvas, torch.randn_like(canvas.latent), torch.zeros_like(hole(0, 0)))
    assert torch.equal(edited.image, canvas.image) and torch.equal(edited.latent, canvas.latent) and not edited.share


def test_what_does_not_go_together_is_refused_in_words(vae: LazyVAE) -> None:
    canvas, mask = open_canvas(vae, picture(2)), hole(0, 0)
    with pytest.raises(ValueError, match="2 pictures and 1 holes, and there are 3 latents"):
        edit_canvas(canvas, torch.randn(3, *canvas.latent.shape[1:]), mask)
    with pytest.raises(ValueError, match="2 pictures, and there are 3 masks"):
        edit_canvas(canvas, canvas.latent, mask.repeat(3, 1, 1, 1))
    with pytest.raises(ValueError, match="of 4 channels, 31×24, the canvas's of 4 channels, 32×24"):
        edit_canvas(canvas, canvas.latent[..., 1:], mask)
    with pytest.raises(ValueError, match="the mask is 256×184 and the canvas 256×192"):
        masked_latent(canvas, mask[..., 8:, :])
    with pytest.raises(ValueError, match="not numbers"):
        edit_canvas(canvas, canvas.latent * torch.nan, mask)


@pytest.mark.parametrize("size", [(100, 64), (97, 113), (5, 3), (104, 120)])
def test_a_canvas_of_any_size_is_that_of_its_picture_filled_up(vae: LazyVAE, size: tuple[int, int]) -> None:
    """With the last row and column repeated by hand: the same latents, and of an edit the same pixels as far as they
    go. A hole at the edge goes on beyond it."""
    image, mask = torch.rand(1, 3, *size), torch.zeros(1, 1, *size)
    mask[..., size[0] // 3 :, size[1] // 2 :] = 1
    rows, columns = (torch.arange(-(-side // 16) * 16).clamp(max=side - 1) for side in size)
    whole, whole_mask = (each[:, :, rows][..., columns] for each in (image, mask))
    ours, theirs = open_canvas(vae, image), open_canvas(vae, whole)
    assert torch.equal(ours.latent, theirs.latent) and torch.equal(ours.image, image)
    assert torch.equal(masked_latent(ours, mask), masked_latent(theirs, whole_mask))
    samples = torch.randn_like(ours.latent)
    ours, theirs = edit_canvas(ours, samples, mask, "paste"), edit_canvas(theirs, samples, whole_mask, "paste")
    assert torch.equal(ours.latent, theirs.latent)
    assert torch.equal(ours.image, theirs.image[..., : size[0], : size[1]])
    outside = (mask == 0).expand_as(image)
    assert torch.equal(ours.image[outside], image[outside]) and not torch.equal(ours.image, image)
