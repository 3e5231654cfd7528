"""Attention masks: each step of the method against the same written out, and what is said about words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lazydiff.auto_mask.attention_mask import (
    AttentionMaps,
    Thresholds,
    Word,
    classify,
    classify_by,
    point_at,
    refine,
    sink,
    words_of,
    words_to_maps,
)
from lazydiff.auto_mask.maps import blur, normalise, resize

SIZE = (24, 32)
TREE = (slice(2, 5), slice(1, 4))
SKY = (slice(0, 2), slice(6, 8))


def attention_to(*places: tuple[slice, slice] | None, grid: tuple[int, int] = (6, 8)) -> Tensor:
    """Attention [h, w, tokens] after a softmax, each token of which but the first is looked for at one place; the first
    takes what is left."""
    scores = torch.zeros(*grid, 1 + len(places))
    scores[..., 0] = 3
    for token, place in enumerate(places, 1):
        if place is not None:
            scores[(*place, token)] = 5
    return scores.softmax(-1)


def inside(place: tuple[slice, slice]) -> Tensor:
    mask = torch.zeros(6, 8)
    mask[place] = 1
    return mask.repeat_interleave(4, 0).repeat_interleave(4, 1)


# Words


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["▁a", "▁tre", "e", "</s>"], [("a", (0,)), ("tree", (1, 2))]),
        (["▁", "tree", ",", "▁red", "</s>"], [("tree,", (0, 1, 2)), ("red", (3,))]),
        (["<s>", "▁tree", "<pad>"], [("tree", (1,))]),
        (["</s>"], []),
    ],
)
def test_pieces_of_a_word_belong_together(pieces: list[str], words: list[tuple[str, tuple[int, ...]]]) -> None:
    assert words_of(pieces) == words


def test_a_user_points_at_words_of_the_prompt() -> None:
    words = [Word(text, (i,)) for i, text in enumerate(["A", "red", "tree,", "no", "Tree"])]
    assert point_at(words, "TREE, red") == [2, 4, 1] and point_at(words, " ") == []
    with pytest.raises(ValueError, match="no word “house” in the prompt: choose among A, red, tree,"):
        point_at(words, "red house")


# The steps of the method


def test_maps_are_enlarged_as_pillow_does() -> None:
    """Up to Pillow's own rounding to 8 bits in each of two passes."""
    small = torch.rand(6, 8)
    picture = Image.fromarray((small * 255).round().byte().numpy())
    expected = np.asarray(picture.resize((32, 24), Image.Resampling.BICUBIC), np.float32) / 255
    assert np.abs(resize((small * 255).round()[None] / 255, SIZE)[0].numpy() - expected).max() <= 1.5 / 255


def test_a_words_map_is_the_mean_of_its_pieces() -> None:
    attention = torch.rand(6, 8, 5)
    maps = words_to_maps(attention, [(1,), (2, 4)], SIZE)
    mean = (attention[..., 2] + attention[..., 4]) / 2
    assert torch.allclose(maps[1], normalise(resize(mean[None] / mean.max(), SIZE)[0]))
    assert maps.shape == (2, *SIZE) and torch.equal(maps.amin((1, 2)), torch.zeros(2)) and maps[0].max() == 1


def test_a_map_without_contrast_is_nothing() -> None:
    assert not words_to_maps(torch.full((6, 8, 2), 0.5), [(0,)], SIZE).any()
    assert not words_to_maps(torch.zeros(6, 8, 2), [(0,)], SIZE).any()


def test_words_are_classified_by_their_likeness_to_the_reference_word() -> None:
    reference, other = torch.zeros(2, 4, 4)
    reference[:2], other[2:] = 1.0, 1.0
    half = reference + 0.8 * other
    maps = torch.stack([other, reference, half, reference + 0.1 * other])
    cosines = [float(F.cosine_similarity(m.flatten(), maps[1].flatten(), dim=0)) for m in maps]
    assert cosines[0] == 0 and 0.6 < cosines[2] < 0.9 < cosines[3]
    assert classify(maps, reference).tolist() == [-1, 1, 0, 1]
    assert classify(maps, reference, Thresholds(object=0.999, background=0.8)).tolist() == [-1, 1, -1, 0]
    assert classify(maps, other).tolist()[:2] == [1, -1]


def test_words_that_a_user_points_at_are_the_object_and_no_others() -> None:
    sky, tree = torch.zeros(2, 4, 4)
    sky[:2], tree[2:] = 1.0, 1.0
    maps = torch.stack([sky, tree, tree])
    assert classify_by(maps, [1]).tolist() == [-1, 1, 0]
    assert classify_by(maps, [0, 2]).tolist() == [1, 0, 1]


def test_the_background_is_taken_from_the_object() -> None:
    maps = torch.rand(4, 6, 8)
    expected = (normalise((maps[0] + maps[3]) / 2) - normalise(maps[1])).clamp(min=0)
    assert torch.allclose(refine(maps, torch.tensor([1, -1, 0, 1])), expected)
    assert torch.equal(refine(maps, torch.tensor([0, 0, 1, 0])), normalise(maps[2]))
    with pytest.raises(ValueError, match="no word has the role of the object"):
        refine(maps, torch.tensor([0, -1, 0, 0]))


def test_blur_is_the_weighted_mean_of_mirrored_neighbours() -> None:
    heat = torch.rand(5, 7)
    expected = heat.numpy()
    for _ in range(2):
        padded, weights = np.pad(expected, 2, mode="reflect"), np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
        expected = np.array([[(padded[y : y + 5, x : x + 5] * weights).sum() for x in range(7)] for y in range(5)])
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert np.abs(blur(heat).numpy() - expected).max() < 1e-5


# All of it


@pytest.mark.parametrize("reference", ["start", "sink", "difference"])
def test_the_object_is_found_and_the_background_is_not(reference: str) -> None:
    """Both words of the object are pieces of one place; the start token sees what is left."""
    maps = AttentionMaps([(1,), (2, 3)], SIZE, reference)  # type: ignore[arg-type]
    attention = attention_to(TREE, TREE, TREE, SKY)
    change = torch.zeros(2, 4, 6, 8)
    change[(..., *TREE)] = torch.randn(2, 4, 3, 3)
    maps.add_difference(change, torch.zeros_like(change))
    maps.add(attention)
    found, wanted = maps.mask() > 0, inside(TREE) > 0
    assert found[wanted].all() and not found[inside(SKY) > 0].any()
    assert (found & wanted).sum() / (found | wanted).sum() > 0.5  # of 12×12, blurred by four on every side


def test_background_words_are_told_from_the_object() -> None:
    maps = AttentionMaps([(1,), (2,)], SIZE)
    scores = torch.zeros(6, 8, 3)
    scores[(*TREE, 1)], scores[(*SKY, 2)] = 5, 1
    maps.add(scores.softmax(-1))
    assert not (maps.mask() * inside(SKY)).any()
    assert maps.roles is not None and maps.roles.tolist() == [1, -1]


def test_a_word_that_is_pointed_at_is_what_is_found() -> None:
    for objects, place, other in (([0], TREE, SKY), ([1], SKY, TREE)):
        maps = AttentionMaps([(1,), (2,)], SIZE, objects=objects)
        maps.add(attention_to(TREE, SKY))
        assert maps.mask()[inside(place) > 0].all() and not (maps.mask() * inside(other)).any()


def test_what_is_added_is_averaged_whatever_the_order_and_the_batches() -> None:
    """Round-off of sums in another order."""
    steps = torch.rand(6, 2, 6, 8, 4).softmax(-1)
    together, single = AttentionMaps([(1,), (2, 3)], SIZE), AttentionMaps([(1,), (2, 3)], SIZE)
    together.add(steps)
    for one in steps.flatten(0, 1).flip(0):
        single.add(one)
    expected = steps.mean((0, 1))
    for maps in (together, single):
        assert maps.attention.value is not None
        assert torch.allclose(maps.attention.value, expected, atol=1e-6)
    assert torch.allclose(together.heat(), single.heat(), atol=1e-4)


def test_roles_stay_as_the_first_step_has_them_unless_asked() -> None:
    first, later = attention_to(TREE, SKY), attention_to(SKY, TREE)
    change = torch.zeros(1, 4, 6, 8)
    change[(..., *TREE)] = 1
    for frozen, roles in ((True, [1, -1]), (False, [-1, 1])):
        maps = AttentionMaps([(1,), (2,)], SIZE, "difference", frozen=frozen)
        maps.add_difference(change, torch.zeros_like(change))
        maps.add(first)
        maps.heat()
        assert maps.roles is not None and maps.roles.tolist() == [1, -1]
        for _ in range(20):
            maps.add(later)
        maps.heat()
        assert maps.roles.tolist() == roles


def test_the_sink_is_the_token_of_no_word_that_draws_most() -> None:
    attention = torch.tensor([0.4, 0.2, 0.1, 0.3]).expand(6, 8, 4)
    assert sink(attention, [(0,)]) == 3 and sink(attention, [(0, 1), (2, 3)]) == 0


def test_bad_input_is_told() -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        AttentionMaps([], SIZE)
    with pytest.raises(ValueError, match="no reference “end”: choose start, sink, difference"):
        AttentionMaps([(1,)], SIZE, "end")  # type: ignore[arg-type]
    maps = AttentionMaps([(1,), (2,)], SIZE, "difference")
    with pytest.raises(ValueError, match="no cross-attention was seen"):
        maps.heat()
    maps.add(torch.rand(6, 8, 3))
    with pytest.raises(ValueError, match="needs guidance"):
        maps.heat()
    with pytest.raises(ValueError, match=r"maps of \[3, 8, 3\] do not go with those of \[6, 8, 3\]"):
        maps.add(torch.rand(3, 8, 3))
