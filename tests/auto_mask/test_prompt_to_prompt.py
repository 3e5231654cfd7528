"""Attention kept from one prompt for another: which words are shared, and what becomes of the others' attention."""

from __future__ import annotations

import pytest
import torch

from lazydiff.auto_mask.attention_mask import Word
from lazydiff.auto_mask.prompt_to_prompt import Stabiliser, shared_tokens
from lazydiff.model.layers import sdpa


def words(text: str) -> list[Word]:
    """Of one token each, but “striped” of two; behind a start token."""
    found, place = [], 1
    for word in text.split():
        tokens = (place, place + 1) if word == "striped" else (place,)
        found.append(Word(word, tokens))
        place += len(tokens)
    return found


@pytest.mark.parametrize(
    ("source", "target", "shared"),
    [
        ("a red cat", "a red cat", [(1, 1), (2, 2), (3, 3)]),
        ("a red cat", "a red dog", [(1, 1), (2, 2)]),
        ("a cat on a mat", "a striped cat on a mat", [(1, 1), (2, 4), (3, 5), (4, 6), (5, 7)]),
        ("a striped cat", "striped cat", [(2, 1), (3, 2), (4, 3)]),
        ("cat dog", "tree", []),
        ("", "tree", []),
    ],
)
def test_shared_words_are_those_in_the_same_order(source: str, target: str, shared: list[tuple[int, int]]) -> None:
    assert shared_tokens(words(source), words(target)) == shared


def test_words_that_are_cut_into_other_tokens_are_not_shared() -> None:
    assert shared_tokens([Word("cat", (1,)), Word("on", (2,))], [Word("cat", (1, 2)), Word("on", (3,))]) == [(2, 3)]


def test_equal_prompts_attend_equally_and_as_ever() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    mask = (torch.arange(9) < 7)[None, None, None]
    stabiliser = Stabiliser([(place, place) for place in range(5)])
    source = stabiliser.source(q, k, v, mask)
    assert torch.equal(stabiliser.target(q, k, v, mask), source) and not stabiliser.kept
    assert torch.allclose(source, sdpa(q, k, v, mask), atol=1e-5)  # another order of sums


def test_a_change_of_words_leaves_the_shared_ones_their_proportions() -> None:
    """Values that are the identity show the shares themselves."""
    q, k, other = torch.randn(3, 1, 1, 6, 6)
    identity = torch.eye(6)[None, None]
    stabiliser = Stabiliser([(1, 0), (2, 3)])
    source, target = stabiliser.source(q, k, identity), stabiliser.target(q, other, identity)
    assert torch.allclose(target[..., 0] / target[..., 3], source[..., 1] / source[..., 2], rtol=1e-4)
    assert torch.allclose(target.sum(-1), torch.ones(()), atol=1e-6)


def test_a_place_that_is_left_with_nothing_attends_to_nothing() -> None:
    """The target looks at the shared word alone, the source at others alone."""
    k = torch.eye(3)[None, None] * 500
    stabiliser = Stabiliser([(0, 0)])
    stabiliser.source(k[:, :, 1:2], k, k)
    assert torch.equal(stabiliser.target(k[:, :, :1], k, k), torch.zeros(1, 1, 1, 3))


def test_calls_that_do_not_belong_together_are_told() -> None:
    q, k, v = torch.randn(3, 1, 2, 9, 8)
    stabiliser = Stabiliser([(0, 0)])
    with pytest.raises(ValueError, match="not denoised in the same steps: choose a sampler"):
        stabiliser.target(q, k, v)
    stabiliser.source(q, k, v)
    with pytest.raises(ValueError, match="not denoised in the same steps"):
        stabiliser.target(q[:, :, :4], k, v)
