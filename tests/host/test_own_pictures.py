"""Pictures of any size in graphs with the shipped model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .in_process import Pack
from .test_model import Graph

pytestmark = pytest.mark.host
SAMPLER = "ancestral (as trained)", "simple", 1.0
CLOSE = 2e-6  # of two implementations in fp32, in pixels


@pytest.fixture(scope="module")
def graph(pack: Pack) -> Graph:
    return Graph(pack)


def picture(height: int, width: int, hole: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A smooth picture [1, H, W, 3] and a mask [1, H, W] with one rectangle: top, left, height, width."""
    coarse = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)
    mask = torch.zeros(1, height, width)
    mask[:, hole[0] : hole[0] + hole[2], hole[1] : hole[1] + hole[3]] = 1
    return image, mask


SIZES = [
    (512, 768, (100, 300, 90, 120)),  # through a square of the picture
    (120, 96, (30, 20, 60, 50)),  # whole
    (333, 217, (0, 0, 40, 30)),  # a corner, of no whole tokens
    (40, 64, (10, 10, 20, 20)),  # enlarged
]


@pytest.mark.parametrize(("height", "width", "hole"), SIZES)
def test_an_edit_is_the_librarys(
    pack: Pack, graph: Graph, height: int, width: int, hole: tuple[int, int, int, int]
) -> None:
    image, mask = picture(height, width, hole)
    context, latent = pack.call("LazyContextEncode", graph.model, graph.vae, image, mask, 0, 0)
    assert context.size == (96, 96) and latent["samples"].shape[-2:] == (12, 12)
    (samples,) = pack.call(
        "LazySample", graph.model, context, graph.positive, graph.negative, 5, 20, 1.0, *SAMPLER, 1
    )
    (decoded,) = pack.call("LazyVAEDecode", samples, graph.vae, context, image, "lazy")
    (blended,) = pack.call("PoissonBlend", image, decoded, mask, "source", 0)
    assert decoded.shape == blended.shape == image.shape
    assert torch.equal(blended[mask == 0], image[mask == 0]) and not torch.equal(blended, image)
    edit = pack.part("lazydiff.pipeline.edit").edit
    expected = edit(graph.library, image.movedim(-1, 1), mask[:, None], graph.caption, [5])
    torch.testing.assert_close(blended.movedim(-1, 1), expected, atol=CLOSE, rtol=0)


def test_a_canvas_of_any_size(pack: Pack, graph: Graph) -> None:
    """Two edits, one through a square and one of all of it; the second mask away from the first."""
    image, first = picture(160, 256, (20, 30, 24, 24))
    second = torch.zeros_like(first)
    second[:, 90:150, 100:220] = 1
    (canvas,) = pack.call("LazyCanvas", graph.vae, image)
    before, result = image, image
    for mask in (first, second):
        context, _ = pack.call("LazyCanvasContext", graph.model, canvas, mask, 0, 0)
        (samples,) = pack.call(
            "LazySample", graph.model, context, graph.positive, graph.negative, 1, 2, 1.0, *SAMPLER, 1
        )
        canvas, result = pack.call("LazyCanvasEdit", canvas, samples, context, "poisson")
        assert torch.equal(result[mask == 0], before[mask == 0]) and not torch.equal(result, before)
        before = result
    outside = (first + second) == 0
    assert torch.equal(result[outside], image[outside])


def test_several_holes_are_filled_on_one_canvas_of_any_size(pack: Pack, graph: Graph) -> None:
    image, first = picture(160, 256, (20, 30, 24, 24))
    masks = torch.cat((first, torch.zeros_like(first)))
    masks[1, 90:150, 100:220] = 1
    (canvas,) = pack.call("LazyCanvas", graph.vae, image)
    context, _ = pack.call("LazyCanvasContext", graph.model, canvas, masks, 0, 0)
    args = graph.model, context, graph.positive, graph.negative, 1, 2, 1.0, *SAMPLER, 1
    canvas, result = pack.call("LazyCanvasEdit", canvas, pack.call("LazySample", *args)[0], context, "poisson")
    assert len(canvas.image) == 1 and result.shape == image.shape
    for mask in masks[:, None]:
        assert not torch.equal(result[mask > 0], image[mask > 0])
    assert torch.equal(result[masks.amax(0, True) == 0], image[masks.amax(0, True) == 0])


def test_a_decode_of_another_size_is_refused_where_it_is_blended(pack: Pack) -> None:
    image, mask = picture(120, 200, (30, 30, 30, 30))
    with pytest.raises(ValueError, match="the source is 96×96 and the destination 200×120.*Lazy VAE Decode"):
        pack.call("PoissonBlend", image, torch.rand(1, 96, 96, 3), mask, "source", 0)


@pytest.mark.parametrize("channels", [(4, 3), (3, 4), (4, 4)])
def test_transparency_of_the_destination_stays(pack: Pack, channels: tuple[int, int]) -> None:
    image, mask = picture(64, 72, (20, 20, 20, 20))
    alpha, source = torch.rand(1, 64, 72, 1), torch.rand(1, 64, 72, 4)
    given = torch.cat((image, alpha), -1)[..., : channels[0]]
    (blended,) = pack.call("PoissonBlend", given, source[..., : channels[1]], mask, "source", 0)
    (colours,) = pack.call("PoissonBlend", image, source[..., :3], mask, "source", 0)
    assert blended.shape == given.shape and torch.equal(blended[mask == 0], given[mask == 0])
    torch.testing.assert_close(blended[..., :3], colours)
    if channels == (4, 3):
        assert torch.equal(blended[..., 3:], alpha)


def test_what_was_done_is_told(pack: Pack, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pack.part("nodes.host.encode"), "show", said.append)
    image, mask = picture(512, 768, (100, 300, 90, 120))
    context, _ = pack.call("LazyContextEncode", graph.model, graph.vae, image, mask, 0, 0)
    assert said[0].startswith("the picture of 768×512 px is looked at through 360×360 px around the hole")
    assert said[0] in pack.call("LazyContextInfo", context)[0]
    for value, message in {0.0: "the mask is empty", 0.3: "the mask is nowhere above 0.5 (at most 0.30)"}.items():
        pack.call("LazyContextEncode", graph.model, graph.vae, image, mask * 0 + value, 0, 0)
        assert said[-2].startswith(message) or said[-1].startswith(message)
    with pytest.raises(ValueError, match="No mask painted: right-click Load Image"):
        pack.call("LazyContextEncode", graph.model, graph.vae, image, torch.zeros(1, 64, 64), 0, 0)


def test_words_that_the_model_does_not_know_are_named(
    pack: Pack, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(pack.part("nodes.host.clip"), "show", said.append)
    pack.call("CLIPTextEncode", graph.clip, "a red tree, another one")
    assert not said
    pack.call("CLIPTextEncode", graph.clip, "a red Dragon on the table")
    assert said == ["words that this model does not know: dragon, on, the"]


@pytest.mark.parametrize("node", ["ModelSave", "CheckpointSave"])
def test_saving_is_refused_at_once(pack: Pack, graph: Graph, node: str) -> None:
    save = {"ModelSave": (graph.model, "x"), "CheckpointSave": (graph.model, graph.clip, graph.vae, "x")}
    kind = pack.host.NODE_CLASS_MAPPINGS[node]
    with pytest.raises(ValueError, match="cannot be saved by the host's nodes"):
        kind().save(*save[node])


def test_a_prompt_of_another_text_encoder_is_refused_in_words(pack: Pack, graph: Graph) -> None:
    other = [[torch.zeros(1, 4, 4096), {}]]
    with pytest.raises(ValueError, match="made by another text encoder"):
        pack.call("LazySample", graph.model, graph.context, other, other, 1, 1, 1.0, *SAMPLER, 1)


def test_grey_pictures(pack: Pack, graph: Graph) -> None:
    image, mask = picture(96, 96, (30, 30, 30, 30))
    context, _ = pack.call("LazyContextEncode", graph.model, graph.vae, image[..., :1], mask, 0, 0)
    same, _ = pack.call("LazyContextEncode", graph.model, graph.vae, image[..., :1].expand(-1, -1, -1, 3), mask, 0, 0)
    assert torch.equal(context.tokens, same.tokens)
