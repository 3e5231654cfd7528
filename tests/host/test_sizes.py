"""Canvases of any size with stock models, and small holes on large ones, against the same done by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .in_process import Pack
from .test_kv_nodes import Graph
from .tiny_models import TinyVAE
from .tiny_vae import tiny_vae

pytestmark = pytest.mark.host


class AnySize(Graph):
    """An edit of a smooth picture of any size with one hole: top, left, height, width."""

    def __init__(self, pack: Pack, name: str, size: tuple[int, int], hole: tuple[int, int, int, int]):
        super().__init__(pack, name)
        self.pack = pack
        coarse = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(0))
        self.image = F.interpolate(coarse, size, mode="bicubic").clamp(0, 1).movedim(1, -1)
        self.mask = torch.zeros(1, *size)
        self.mask[:, hole[0] : hole[0] + hole[2], hole[1] : hole[1] + hole[3]] = 1

    def decode(self, samples: Tensor) -> Tensor:
        return self.call("VAEDecode", self.vae, {"samples": samples})[0]

    def blend(self, source: Tensor, context: Any = None, match: bool = False) -> Tensor:
        return self.call("PoissonBlend", self.image, source, self.mask, "source", 0, match, context)[0]

    def lazy_decode(self, samples: Tensor, hole: Any, mode: str = "lazy", match: bool = False) -> Tensor:
        return self.call("LazyVAEDecode", {"samples": samples}, self.vae, hole, self.image, mode, match)[0]

    def assert_only_the_hole_changed(self, result: Tensor) -> None:
        assert result.shape[1:] == self.image.shape[1:]
        outside = (self.mask == 0)[0]
        for picture in result:
            assert torch.equal(picture[outside], self.image[0][outside])
            assert (picture != self.image[0]).any(-1)[~outside].float().mean() > 0.9


def whole(x: Tensor, token: int) -> Tensor:
    """[B, H, W, C] or [B, H, W] with its last row and column repeated until it is of whole tokens."""
    rows, columns = (torch.arange(math.ceil(side / token) * token).clamp(max=side - 1) for side in x.shape[1:3])
    return x[:, rows][:, :, columns]


# Filled up to whole tokens

SIZES = [
    ("flux", 16, (250, 317), (100, 200, 60, 117)),  # a hole at the right edge, where 3 px are missing
    ("flux", 16, (264, 328), (200, 60, 64, 80)),  # half a token missing, at the lower edge
    ("flux", 16, (9, 300), (2, 100, 5, 30)),  # less than a token
    ("qwen-image", 16, (250, 317), (100, 200, 60, 117)),
    ("pixart-sigma", 16, (257, 321), (100, 250, 157, 71)),
    ("flux2", 16, (250, 317), (100, 130, 60, 80)),
    ("sd15", 8, (250, 317), (100, 200, 60, 117)),  # of no tokens: whole latent cells
]


@pytest.mark.parametrize(("name", "token", "size", "hole"), SIZES)
def test_sides_that_are_not_whole_are_filled_up_and_cut_off(
    pack: Pack, name: str, token: int, size: tuple[int, int], hole: tuple[int, int, int, int]
) -> None:
    """The latents are bit by bit those of the canvas with repeated edges, the picture what is cut from its decode."""
    graph = AnySize(pack, name, size, hole)
    context, latent = graph.encode(anchors=2)
    samples = graph.sample(context)

    by_hand = AnySize(pack, name, size, hole)
    by_hand.model, by_hand.image, by_hand.mask = graph.model, whole(graph.image, token), whole(graph.mask, token)
    expected, other = by_hand.encode(anchors=2)
    assert context.size == expected.size == tuple(by_hand.image.shape[1:3]) and expected.fitted is None
    assert torch.equal(latent["samples"], other["samples"])
    assert torch.equal(latent["noise_mask"], other["noise_mask"])
    assert torch.equal(samples, by_hand.sample(expected))

    decoded = graph.decode(samples)
    cut = graph.blend(decoded[:, : size[0], : size[1]])
    assert torch.equal(graph.blend(decoded, context), cut)
    assert torch.equal(graph.blend(graph.lazy_decode(samples, context)), cut)
    graph.assert_only_the_hole_changed(cut)


def test_a_hole_of_a_filled_up_canvas_is_decoded_lazily(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pack.part("nodes.vae"), "show", said.append)
    graph = AnySize(pack, "sd3", (250, 317), (100, 200, 24, 24))
    graph.vae = tiny_vae(16)
    context, _ = graph.encode(anchors=2)
    samples = graph.sample(context)
    result, exact = graph.lazy_decode(samples, context), graph.lazy_decode(samples, context, "exact (full)")
    assert said[0].startswith("lazy decode: ") and said[0].endswith("% of the work of a full one; the picture is cut "
                                                                   "back to its 317×250 px")  # fmt: skip
    graph.assert_only_the_hole_changed(graph.blend(result))
    changed = (exact != graph.image).any(-1)[0]
    assert changed[99:125, 199:225].all() and changed.sum() == 26**2  # the hole, and a pixel around it
    # Random weights, with which statistics matter far more than with trained ones.
    assert (result - exact)[0][changed].abs().mean() < 0.5 * (graph.image - exact)[0][changed].abs().mean()


def test_a_decode_of_the_models_size_needs_the_context(pack: Pack) -> None:
    graph = AnySize(pack, "flux", (250, 317), (100, 200, 60, 80))
    context, _ = graph.encode(anchors=1)
    decoded = graph.decode(graph.sample(context))
    with pytest.raises(ValueError, match="source is 320×256 and the destination 317×250.*when it is given the context"):
        graph.blend(decoded)
    graph.image = graph.image[:, :-1]
    with pytest.raises(ValueError, match="destination is 317×249, and the context was made of 317×250"):
        graph.blend(decoded, context)
    with pytest.raises(ValueError, match="canvas is 317×249, and the context was made of 317×250"):
        graph.lazy_decode(graph.sample(context), context)
    with pytest.raises(ValueError, match="the latents are 39×32, this context's 40×32"):
        graph.lazy_decode(graph.sample(context)[..., :-1], context)


@pytest.mark.parametrize("name", ["flux", "qwen-image", "sd3"])
def test_a_chain_on_a_canvas_of_any_size(pack: Pack, name: str) -> None:
    """Sampled latents stay as they are; pixels and latents that no mask has touched are the first canvas's."""
    graph = AnySize(pack, name, (250, 317), (100, 200, 60, 117))
    if name == "sd3":
        graph.vae = tiny_vae(16)
    (canvas,) = graph.call("LazyCanvas", graph.vae, graph.image)
    first, touched = canvas, torch.zeros_like(graph.mask)
    for corner in ((100, 200), (30, 20), (190, 257)):
        mask = torch.zeros_like(touched)
        mask[:, corner[0] : corner[0] + 60, corner[1] : corner[1] + 60] = 1
        context, latent = graph.call("LazyCanvasContext", graph.model, canvas, mask, 0, 0, anchors=2)
        samples = graph.sample(context)
        canvas, image = graph.call("LazyCanvasEdit", canvas, {"samples": samples}, context, "poisson")
        cells = F.max_pool2d(whole(mask, 16)[:, None], 8) > 0
        cells = (cells.unsqueeze(2) if samples.ndim == 5 else cells).expand_as(samples)
        assert torch.equal(canvas.latent[cells], samples[cells])
        touched = torch.maximum(touched, mask)
    outside = touched == 0
    assert image.shape == graph.image.shape and torch.equal(image[outside], graph.image[outside])
    assert not torch.equal(image[~outside], graph.image[~outside])
    still = F.max_pool2d(whole(touched, 16)[:, None], 8) == 0
    still = (still.unsqueeze(2) if canvas.latent.ndim == 5 else still).expand_as(canvas.latent)
    assert torch.equal(canvas.latent[still], first.latent[still])


# Zoom

SMALL = 0.0625  # megapixels: 256×256 px


def zoomed(graph: AnySize, edge: tuple[int, int] = (0, 0), **more: Any) -> tuple[Any, dict[str, Tensor]]:
    given = {"zoom": "around the hole", "zoom_megapixels": SMALL, "anchors": 2, **more}
    return graph.call("LazyContextEncode", graph.model, graph.vae, graph.image, graph.mask, *edge, **given)


def by_pil(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[1, H, W, C] scaled by Pillow, in floating point."""
    if image.shape[1:3] == size:
        return image
    planes = [Image.fromarray(plane.numpy()) for plane in image[0].movedim(-1, 0).contiguous()]
    scaled = [np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(scaled, -1)).clamp(0, 1)[None]


def by_hand(graph: AnySize, region: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[AnySize, Tensor, Tensor]:
    """Cut out, scaled by Pillow, sampled, scaled back, and put back by the host's own node; and the samples."""
    top, left, height, width = region
    cut = graph.image[:, top : top + height, left : left + width]
    small = AnySize(graph.pack, "flux", size, (0, 0, 0, 0))
    small.model, small.vae, small.image = graph.model, graph.vae, by_pil(cut, size)
    (hole,) = graph.call("CropMask", graph.mask, left, top, width, height)
    small.mask = F.adaptive_max_pool2d(hole, size)
    context, _ = small.encode(anchors=2)
    samples = small.sample(context)
    back = by_pil(small.decode(samples), (height, width))
    (pasted,) = graph.call("ImageCompositeMasked", graph.image, back, left, top, False)
    return small, samples, pasted


# Scaling is PyTorch's on one side and Pillow's on the other: rounding of fp32 in pixels, then four steps of a network.
CLOSE = 1e-4
REGIONS = [
    # canvas, hole, surroundings -> region, model's size
    ((900, 1200), (400, 500, 64, 64), 4.0, (304, 404, 256, 256), (256, 256)),  # as it is
    ((900, 1200), (400, 500, 40, 40), 3.0, (360, 460, 120, 120), (256, 256)),  # enlarged
    ((900, 1200), (400, 500, 200, 200), 3.0, (200, 300, 600, 600), (256, 256)),  # reduced
    ((901, 1203), (0, 900, 100, 303), 2.0, (0, 597, 403, 606), (208, 320)),  # in a corner, wider than high
    ((100, 130), (40, 40, 30, 30), 20.0, (0, 0, 100, 130), (224, 288)),  # all of a small picture
]


@pytest.mark.parametrize(("size", "hole", "surroundings", "region", "model"), REGIONS)
def test_a_zoom_is_cutting_out_and_scaling_by_hand(
    pack: Pack, size: tuple[int, int], hole: tuple[int, int, int, int], surroundings: float,
    region: tuple[int, int, int, int], model: tuple[int, int],
) -> None:  # fmt: skip
    graph = AnySize(pack, "flux", size, hole)
    context, latent = zoomed(graph, zoom_surroundings=surroundings)
    assert context.fitted.fit.region == region and context.size == model
    small, expected, pasted = by_hand(graph, region, model)
    samples = graph.sample(context)
    exact = region[2:] == model
    tolerance = 0 if exact else CLOSE * float(expected.abs().max())
    torch.testing.assert_close(samples, expected, atol=tolerance, rtol=0)
    for ours in (graph.blend(graph.decode(samples), context), graph.blend(graph.lazy_decode(samples, context))):
        graph.assert_only_the_hole_changed(ours)
        torch.testing.assert_close(ours, graph.blend(pasted), atol=0 if exact else 1e-3, rtol=0)
    seen, inside = pack.call("LazyContextView", context, graph.image)
    torch.testing.assert_close(seen, small.image, atol=1e-5, rtol=0)
    assert torch.equal(inside, small.mask)


@pytest.mark.parametrize("zoom", ["off", "around the hole"])
def test_inpainting_conditioning_sees_what_the_model_sees(pack: Pack, zoom: str) -> None:
    """Through Lazy Context View, its latents are those of the canvas, cell by cell, and its mask that of the hole."""
    graph = AnySize(pack, "flux-fill", (250, 317), (100, 200, 60, 80))
    context, latent = zoomed(graph, zoom=zoom)
    view = pack.call("LazyContextView", context, graph.image)
    args = graph.positive, graph.negative, view[0], graph.vae, view[1], False
    graph.positive, graph.negative, given = pack.call("InpaintModelConditioning", *args)
    beside = graph.positive[0][1]
    torch.testing.assert_close(given["samples"], latent["samples"])
    assert beside["concat_latent_image"].shape == latent["samples"].shape
    assert torch.equal(beside["concat_mask"].reshape(view[1].shape), view[1])
    result = graph.blend(graph.decode(graph.sample(context)), context)
    graph.assert_only_the_hole_changed(result)


def test_off_is_as_before(pack: Pack) -> None:
    graph = Graph(pack, "flux")
    samples = graph.sample(graph.encode(anchors=2, zoom="off", zoom_surroundings=2.0, zoom_megapixels=0.1)[0])
    assert torch.equal(samples, graph.sample(graph.encode(anchors=2)[0]))


def test_grown_and_feathered_holes_stay_inside_the_zoom(pack: Pack) -> None:
    graph = AnySize(pack, "flux", (900, 1200), (400, 500, 40, 40))
    context, latent = zoomed(graph, (12, 8), zoom_surroundings=1.0)
    fit, holes = context.fitted.fit, context.fitted.holes
    grown = pack.part("nodes.host.encode").soften(graph.mask[:, None], 12, 8)
    assert torch.equal(holes, grown > 0) and fit.region[2:] == (112, 112)  # 40 + 2·(12 + 8 + 16)
    softness = latent["noise_mask"].unique()
    assert len(softness) > 2 and softness[0] == 0 and softness[-1] == 1


def test_variations_and_batches_of_a_zoom(pack: Pack) -> None:
    graph = AnySize(pack, "flux", (600, 800), (300, 300, 40, 40))
    context, _ = zoomed(graph)
    two = graph.sample(context, variations=2)
    torch.testing.assert_close(two[:1], graph.sample(context), atol=CLOSE, rtol=0)
    assert len(two) == 2
    graph.assert_only_the_hole_changed(graph.blend(graph.decode(two), context))
    graph.assert_only_the_hole_changed(graph.blend(graph.lazy_decode(two, context)))

    masks = torch.cat((graph.mask, graph.mask.roll(60, 2)))  # two holes, one region that holds both
    graph.mask = masks
    context, _ = zoomed(graph)
    pictures = graph.blend(graph.decode(graph.sample(context)), context)
    for picture, mask in zip(pictures, masks, strict=True):
        assert torch.equal(picture[mask == 0], graph.image[0][mask == 0])
        assert not torch.equal(picture[mask > 0], graph.image[0][mask > 0])


def test_a_sketch_is_zoomed_with_its_canvas(pack: Pack) -> None:
    graph = AnySize(pack, "flux", (600, 800), (300, 300, 40, 40))
    context, latent = zoomed(graph)
    samples = graph.sample(context, denoise=0.3, sketch=graph.image)
    # The canvas itself as sketch: what lies under the mask anyway.
    assert torch.equal(samples, graph.sample(context, denoise=0.3))
    with pytest.raises(ValueError, match="the sketch is 400×300 and the canvas 800×600"):
        graph.sample(context, denoise=0.3, sketch=graph.image[:, ::2, ::2])
    with pytest.raises(ValueError, match="the image is 400×300 and the canvas 800×600"):
        pack.call("LazyContextView", context, graph.image[:, ::2, ::2])


def test_a_zoom_is_told(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pack.part("nodes.host.encode"), "show", said.append)
    graph = AnySize(pack, "flux", (900, 1200), (400, 500, 40, 40))
    context, _ = zoomed(graph)
    line = "the picture of 1200×900 px is looked at through 120×120 px around the hole, scaled to the model's 256×256"
    assert said[0].startswith(line) and said[0] in pack.call("LazyContextInfo", context)[0]
    graph = AnySize(pack, "flux", (250, 317), (100, 200, 60, 80))
    context, _ = graph.encode()
    assert said[1].startswith("the picture of 317×250 px is filled up to whole tokens, 320×256 px; Lazy VAE Decode")
    assert said[1] in pack.call("LazyContextInfo", context)[0]


def test_an_empty_mask_zooms_to_nothing(pack: Pack) -> None:
    graph = AnySize(pack, "flux", (600, 800), (0, 0, 0, 0))
    context, latent = zoomed(graph)
    samples = graph.sample(context)
    assert torch.equal(samples, latent["samples"])
    assert torch.equal(graph.blend(graph.decode(samples), context), graph.image)


def test_our_own_model_needs_no_zoom(pack: Pack) -> None:
    model, _, vae = pack.call("LazyCheckpointLoader", "lazydiffusion-small.safetensors")
    graph = AnySize(pack, "flux", (600, 800), (300, 300, 40, 40))
    graph.model, graph.vae = model, vae
    (ours, _), (plain, _) = zoomed(graph), graph.encode()
    assert ours.fitted.fit == plain.fitted.fit and torch.equal(ours.tokens, plain.tokens)
    seen, hole = pack.call("LazyContextView", ours, graph.image)
    assert seen.shape == (1, 96, 96, 3) and torch.equal(hole, ours.mask[:, 0].float())


# Outpainting, masks, colours


def test_outpainting(pack: Pack) -> None:
    """All of the picture but the overlap is there afterwards, bit by bit."""
    graph = AnySize(pack, "flux", (250, 317), (100, 200, 60, 80))
    picture = graph.image
    graph.image, graph.mask = pack.call("LazyOutpaint", picture, 64, 0, 100, 8, 8, torch.zeros(1, 64, 64))
    assert graph.image.shape == (1, 258, 481, 3) and graph.mask.shape == (1, 258, 481)
    context, _ = graph.encode(anchors=2)
    result = graph.blend(graph.decode(graph.sample(context)), context)
    assert torch.equal(result[:, :242, 72:373], picture[:, :242, 8:309])
    assert not torch.equal(result[:, :242, 64:72], picture[:, :242, :8])
    with pytest.raises(ValueError, match="the mask is 64×64 and the image 317×250"):
        pack.call("LazyOutpaint", picture, 64, 0, 0, 0, 8, torch.ones(1, 64, 64))


def test_a_mask_is_made_whole(pack: Pack) -> None:
    mask = torch.zeros(2, 40, 50)
    mask[0, 10:30, 10:30], mask[0, 15:20, 15:20], mask[1, 5, 5] = 0.4, 0.0, 0.9
    (plain,) = pack.call("LazyMask", mask, 0.3, False)
    assert torch.equal(plain, (mask > 0.3).float())
    (filled,) = pack.call("LazyMask", mask, 0.3, True)
    assert filled[0].sum() == 400 and torch.equal(filled[1], plain[1])
    assert not pack.call("LazyMask", mask, 0.5, True)[0][0].any()


@pytest.mark.parametrize("zoom", ["off", "around the hole"])
def test_colours_are_matched_where_they_are_asked_for(pack: Pack, zoom: str) -> None:
    """A VAE that darkens everything: matched, the rest of the picture tells by how much, and the hole follows."""

    class Dark(TinyVAE):
        def decode(self, latent: Tensor) -> Tensor:
            return super().decode(latent) * 0.8 - 0.05

    graph = AnySize(pack, "flux", (256, 320), (112, 128, 32, 48))
    honest, graph.vae = graph.vae, Dark()
    context, latent = zoomed(graph, zoom=zoom)
    samples = latent["samples"]  # what random weights make would leave 0…1, and be cut off
    dark, matched = (graph.lazy_decode(samples, context, match=match) for match in (False, True))
    blended = graph.blend(graph.decode(samples), context, match=True)
    plain = graph.blend(graph.decode(samples), context)
    graph.vae = honest
    expected = graph.lazy_decode(samples, context)
    inside = graph.mask > 0
    error = {name: float((x - expected)[inside].abs().mean()) for name, x in {"dark": dark, "matched": matched}.items()}
    assert error["matched"] < 0.2 * error["dark"]
    for picture in (matched, blended):
        assert torch.equal(graph.blend(picture)[~inside], graph.image[~inside])
    # Poisson blending alone takes the shift away, and not the contrast.
    target = graph.blend(expected)
    assert (blended - target)[inside].abs().mean() < 0.5 * (plain - target)[inside].abs().mean()


# The mask editor's trap


@pytest.mark.parametrize("zoom", ["off", "around the hole"])
def test_black_under_the_mask_is_told_where_it_matters(
    pack: Pack, zoom: str, caplog: pytest.LogCaptureFixture
) -> None:
    graph = AnySize(pack, "flux", (250, 317), (100, 200, 60, 80))
    graph.sample(zoomed(graph, zoom=zoom)[0], denoise=0.5)
    graph.image[graph.mask > 0] = 0
    context, _ = zoomed(graph, zoom=zoom)
    graph.sample(context)
    graph.sample(context, denoise=0.5, sketch=1 - graph.image)
    assert "black" not in caplog.text
    graph.sample(context, denoise=0.5)
    assert caplog.text.count("all that lies under the mask is black") == 1
