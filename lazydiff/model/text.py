"""A small text encoder of T5's architecture with a sentencepiece vocabulary of its own."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class TextEncoder(nn.Module):
    """Prompts -> hidden states [B, L, width] and key mask [B, L]; parameter names are those of T5 encoders."""

    def __init__(self, vocabulary: bytes, width: int, layers: int = 2, max_length: int = 32):
        from transformers import T5Config, T5EncoderModel  # here, because it takes seconds and few callers need it

        super().__init__()
        self.vocabulary, self.max_length = vocabulary, max_length
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=self.pieces.vocab_size(), d_model=width, d_kv=width // 4, d_ff=2 * width, num_layers=layers,
                num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token numbers [B, L], padded with 0, and their key mask; an empty prompt is the end token alone."""
        rows = [[*self.pieces.encode(prompt), self.pieces.eos_id()] for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            check_length(prompt, len(row), self.max_length)
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids, ids != self.pieces.pad_id()

    def split(self, prompt: str) -> list[str]:
        """The pieces that a prompt's tokens stand for; a word's first one begins with "▁"."""
        return [*self.pieces.encode(prompt, out_type=str), "</s>"]

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = self.tokens(prompts)
        device = self.t5.shared.weight.device
        ids, mask = ids.to(device), mask.to(device)
        return self.t5(input_ids=ids, attention_mask=mask).last_hidden_state, mask


class PretrainedT5(nn.Module):
    """A T5 encoder of transformers with its tokenizer, as PixArt-α uses T5-XXL with 120 tokens."""

    def __init__(self, tokenizer: Any, t5: nn.Module, max_length: int = 120):
        super().__init__()
        self.tokenizer, self.t5, self.max_length = tokenizer, t5, max_length

    @property
    def width(self) -> int:
        """Of its features."""
        width: int = self.t5.get_input_embeddings().embedding_dim  # type: ignore[operator]
        return width

    def split(self, prompt: str) -> list[str]:
        """The pieces that a prompt's tokens stand for; a word's first one begins with "▁"."""
        pieces: list[str] = self.tokenizer.convert_ids_to_tokens(self.tokenizer(prompt)["input_ids"])
        return pieces

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> hidden states [B, L, width] and key mask [B, L]."""
        batch = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        mask = batch["attention_mask"].bool()
        for prompt, length in zip(prompts, mask.sum(1).tolist(), strict=True):
            check_length(prompt, length, self.max_length)
        device = next(self.t5.parameters()).device
        ids, mask = batch["input_ids"].to(device), mask.to(device)
        return self.t5(input_ids=ids, attention_mask=mask).last_hidden_state, mask


class PreparedText(nn.Module):
    """Stands in a text encoder's place where features were prepared: in a training on shards.

    known: features [L, width] of prompts that may be given as words
    """

    def __init__(self, known: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.known = known or {}

    def forward(self, prompts: Sequence[str | Tensor]) -> tuple[Tensor, Tensor]:
        """Features [L, width] of each prompt -> hidden states [B, L, width] float32 and key mask [B, L]."""
        features = [self.known[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
        lengths = torch.tensor([len(row) for row in features])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return pad_sequence([row.float() for row in features], batch_first=True), mask


def unknown_words(prompt: str, known: Collection[str]) -> list[str]:
    """Words of a prompt that a model's training never used; none if it is not known which it did."""
    words = [word.strip(".,:;!?\"'()[]“”") for word in prompt.casefold().split()]
    return list(dict.fromkeys(word for word in words if known and word and word not in known))


def check_length(prompt: str, length: int, most: int) -> None:
    """Errors: ValueError for a prompt of more tokens than the model reads; nothing is cut off in silence."""
    if length > most:
        raise ValueError(f"the prompt is {length} tokens long and this model reads {most}: shorten “{prompt[:40]}…”")


def train_vocabulary(captions: Iterable[str], size: int) -> bytes:
    """A unigram sentencepiece model of `size` pieces, case-folding, with T5's special tokens; deterministic."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_writer=model, vocab_size=size, model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
