"""Which of the tokens that a model attends to are which words of a prompt, as the host's text encoders lay them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from comfy.sd1_clip import escape_important, token_weights, unescape_important

from ...lazydiff.auto_mask.attention_mask import Word

CLIP = ("l", "g", "h")  # encoders that are one text together, side by side
# token or embedding, weight, and number of the word: 0 for start, end and padding
Token = tuple[Any, float, int]


class Prompt(NamedTuple):
    """A prompt as a model sees it."""

    conditioning: list[list[Any]]
    length: int  # tokens of the whole text
    places: list[int]  # of those that are no padding
    words: list[Word]  # with their tokens as indices into `places`
    start: bool  # whether the text begins with a start token


def read_prompt(clip: Any, text: str) -> Prompt:
    """A prompt and its words. Errors: ValueError for one without words, and for an encoder of unknown layout."""
    if not text.strip():
        raise ValueError("the prompt is empty: write what the mask should cover")
    streams = clip.tokenize(text, return_word_ids=True)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    length = conditioning[0][0].shape[1]
    encoders = layout(streams, length)
    places: list[int] = []
    words: dict[str, Word] = {}  # by their number and letters: several encoders read the same words
    for name, first in encoders:
        tokenizer = tokenizer_of(clip, name)
        real = [place for place in real_tokens(streams[name], tokenizer, first) if place >= 0]
        index = {place: len(places) + i for i, place in enumerate(real)}
        for key, tokens in words_of_tokens(streams[name], tokenizer, text).items():
            seen = [index[first + i] for i in tokens if first + i in index]
            if seen:
                words[key] = Word(key.split(" ", 1)[1], (*words.get(key, Word("", ())).tokens, *seen))
        places += real
    if not words:
        raise ValueError(
            f"the model sees no words of the prompt “{text}”: write what the mask should cover. Connect the CLIP that "
            "belongs to the model"
        )
    return Prompt(conditioning, length, places, list(words.values()), encoders[0][0] in CLIP)


def layout(streams: dict[str, list[list[Token]]], length: int) -> list[tuple[str, int]]:
    """The encoders whose tokens a text of `length` tokens is made of, each with the place of its first token."""
    sizes = {name: sum(len(chunk) for chunk in chunks) for name, chunks in streams.items()}
    clips = [name for name in sizes if name in CLIP][:1]
    others = [name for name in sizes if name not in CLIP]
    for names in (clips + others, others, clips):
        if names and sum(sizes[name] for name in names) == length:
            return list(zip(names, accumulate([0, *(sizes[name] for name in names[:-1])]), strict=True))
    if len(others) == 1 and sizes[others[0]] > length:  # the encoder cuts a template off before the prompt
        return [(others[0], length - sizes[others[0]])]
    raise ValueError(
        f"the text encoder makes {length} tokens of {sizes}: how they belong to words is not known. Connect the CLIP "
        "that belongs to the model"
    )


def tokenizer_of(clip: Any, name: str) -> Any:
    return getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}")


def real_tokens(chunks: Sequence[Sequence[Token]], tokenizer: Any, first: int) -> Iterable[int]:
    """Places of tokens that are no padding: start, words, and the end token behind the last word of each chunk."""
    for chunk in chunks:
        end = max((i + 1 for i, (_, _, word) in enumerate(chunk) if word), default=0)
        end += tokenizer.end_token is not None
        yield from range(first, first + min(end, len(chunk)))
        first += len(chunk)


def words_of_tokens(chunks: Sequence[Sequence[Token]], tokenizer: Any, text: str) -> dict[str, list[int]]:
    """The words of a text between spaces, each after its number and a space, and the tokens of each.

    Tokens are laid beside the text by what they decode to, letter by letter; where that differs from the text
    (embeddings, letters that the vocabulary lacks), the words are those of the decoded tokens.
    """
    tokens = [token for chunk in chunks for token in chunk]
    owners = [i for i, (token, _, word) in enumerate(tokens) if word and isinstance(token, int)]
    pieces = tokenizer.tokenizer
    decode = getattr(pieces, "decode", None) or pieces.tokenizer.decode  # the host's own sentencepiece had none once
    numbers = [tokens[i][0] for i in owners]
    starts = [len(squeeze(decode(numbers[:i]))) for i in range(len(numbers))]
    decoded = decode(numbers)
    letters = squeeze(decoded)
    wording = next((each for each in (text, unweighted(text)) if squeeze(each) in letters), decoded)
    at = letters.rfind(squeeze(wording))
    words = {}
    for number, word in enumerate(wording.split()):
        end = at + len(squeeze(word))
        words[f"{number} {word}"] = [i for i, start in zip(owners, starts, strict=True) if at <= start < end]
        at = end
    return words


def squeeze(text: str) -> str:
    return "".join(text.split()).lower()


def unweighted(text: str) -> str:
    """A prompt without the brackets and numbers that weigh its words."""
    return "".join(unescape_important(part) for part, _ in token_weights(escape_important(text), 1.0))
