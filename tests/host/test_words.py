"""Words of prompts and their tokens, with every kind of text encoder that the host has for the models we observe."""

from __future__ import annotations

import pytest

from .in_process import Pack
from .stand_in_clip import TOKENIZERS, StandInCLIP

pytestmark = pytest.mark.host

PROMPT = "A photo of a striped, blue treehouse beside the café"


@pytest.fixture(params=TOKENIZERS)
def clip(pack: Pack, request: pytest.FixtureRequest) -> StandInCLIP:
    return StandInCLIP(request.param)


def squeezed(text: str) -> str:
    return "".join(text.split()).lower()


def test_tokens_of_a_word_spell_it(pack: Pack, clip: StandInCLIP) -> None:
    """In each of the texts that the model sees; start, end and padding are no word's."""
    read = pack.part("nodes.host.words").read_prompt(clip, PROMPT)
    stream = clip.stream(clip.tokenize(PROMPT))
    tokenizers = [getattr(clip.tokenizer, name) for name in vars(clip.tokenizer) if name not in ("clip", "clip_name")]
    tokenizers = [each.tokenizer for each in tokenizers if hasattr(each, "tokenizer")]
    assert read.length == len(stream)
    assert [word.text for word in read.words] == PROMPT.split()
    for word in read.words:
        numbers = [int(stream[read.places[token]][0]) for token in word.tokens]
        times = 2 if clip.name == "sd3" else 1
        halves = [numbers] if times == 1 else halves_of(word.tokens, numbers)
        assert len(halves) == times
        for half in halves:
            spelled = [squeezed(tokenizer.decode(half)) for tokenizer in tokenizers]
            assert squeezed(word.text) in spelled, (word, spelled)
    assert read.start == (clip.name in ("sd15", "sdxl", "sd3"))
    assert len(read.places) < 60  # of 77 to 333


def halves_of(tokens: tuple[int, ...], numbers: list[int]) -> list[list[int]]:
    """Tokens in CLIP's text and in T5's, which are a long way apart."""
    cut = next(i for i in range(1, len(tokens)) if tokens[i] != tokens[i - 1] + 1)
    return [numbers[:cut], numbers[cut:]]


@pytest.mark.parametrize("text", ["a (red:1.3) cat", "a ((red)) cat"])
def test_weights_are_no_words(pack: Pack, text: str) -> None:
    read = pack.part("nodes.host.words").read_prompt(StandInCLIP("sd15"), text)
    assert [word.text for word in read.words] == ["a", "red", "cat"]
    assert [word.tokens for word in read.words] == [(1,), (2,), (3,)]


def test_long_prompts_are_of_several_chunks(pack: Pack) -> None:
    """Of 77 tokens each, with a start token, an end token and padding of its own."""
    clip = StandInCLIP("sd15")
    text = " ".join(["(cat:1.1) dog"] * 60)
    read = pack.part("nodes.host.words").read_prompt(clip, text)
    stream = clip.stream(clip.tokenize(text))
    assert read.length == len(stream) == 154 and len(read.words) == 120
    seen = [[stream[read.places[token]][0] for token in word.tokens] for word in read.words]
    assert seen == [seen[0], seen[1]] * 60 and seen[0] != seen[1] and len(seen[0]) == 1


def test_the_small_models_own_pieces(pack: Pack) -> None:
    _, clip, _ = pack.call("LazyCheckpointLoader", "lazydiffusion-small.safetensors")
    read = pack.part("nodes.host.words").read_prompt(clip, "a striped blue tree")
    assert [word.text for word in read.words] == ["a", "striped", "blue", "tree"]
    assert sorted(token for word in read.words for token in word.tokens) == list(range(read.length - 1))
    assert not read.start


@pytest.mark.parametrize("text", ["", "  \n "])
def test_empty_prompt_is_refused_in_words(pack: Pack, text: str) -> None:
    with pytest.raises(ValueError, match="the prompt is empty: write what the mask should cover"):
        pack.part("nodes.host.words").read_prompt(StandInCLIP("sd15"), text)


def test_another_models_clip_is_refused_in_words(pack: Pack) -> None:
    clip = StandInCLIP("flux")
    clip.stream = lambda tokens: [(0, 1.0)] * 40  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="Connect the CLIP that belongs to the model"):
        pack.part("nodes.host.words").read_prompt(clip, "a cat")
