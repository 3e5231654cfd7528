"""Prompts of several masks as one CONDITIONING, and what a sampling keeps of them from step to step."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

MASK = "attention_mask"  # under which the host's conditionings say which of their tokens are words

Entry = tuple[Tensor, dict[str, Any]]


def as_batch(prompts: list[list[Entry]]) -> list[list[Any]]:
    """One CONDITIONING of a batch, from one of each prompt, in order.

    Prompts of different lengths are padded with zeros, and only then is there a mask, [B, L] int64, of what is a word.
    Errors: ValueError for conditionings that cannot be one batch.
    """
    return [[*merged(list(entries))] for entries in zip(*prompts, strict=True)]


def merged(entries: list[Entry]) -> Entry:
    length = max(text.shape[1] for text, _ in entries)
    texts = [F.pad(text, (0, 0, 0, length - text.shape[1])) for text, _ in entries]
    told = [dict(told) for _, told in entries]
    masks = torch.cat(
        [F.pad(words(text, each.pop(MASK, None)), (0, length - text.shape[1]))
         for (text, _), each in zip(entries, told, strict=True)]
    )  # fmt: skip
    batch = {key: together(key, [each.get(key) for each in told]) for key in told[0]}
    if not masks.all() or MASK in entries[0][1]:
        batch[MASK] = masks
    return torch.cat(texts), batch


def words(text: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L] int64, 1 = a word, of a prompt [B, L, C]; tokens that were added after the mask's own are words."""
    found = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
    if mask is not None:
        mask = mask.expand(len(text), -1)[:, : text.shape[1]]
        found[:, : mask.shape[1]] = mask
    return found


def together(key: str, values: list[Any]) -> Any:
    """What a conditioning holds beside its words, for a batch: tensors row by row, of others the first one's."""
    if not torch.is_tensor(values[0]):
        return values[0]
    if len({tuple(value.shape) for value in values}) > 1:
        raise ValueError(f"this text encoder's prompts cannot be one batch, because of {key}: use one node for each")
    return torch.cat(values)


def check_prompts(prompts: int, masks: int, pictures: int) -> None:
    """Errors: ValueError for prompts of which the host would silently leave out some, or give one to another's mask."""
    if prompts not in (1, masks, pictures):
        raise ValueError(
            f"there are {prompts} prompts for {masks} masks and {pictures} pictures: give one prompt for all, one for "
            "each mask, or one for each picture"
        )


def check_stock_prompts(cond: dict[str, Any], masks: int, pictures: int) -> None:
    """As above, for a stock model: what it makes of padding depends on the model, and most attend to it.

    Errors: ValueError for several prompts of different lengths, too.
    """
    text, mask = cond.get("cross_attn"), cond.get(MASK)
    if text is None or len(text) == 1:
        return
    check_prompts(len(text), masks, pictures)
    if mask is not None and mask.shape == text.shape[:2] and not mask.all():
        raise ValueError(
            "these prompts are of different lengths, and a stock model can take only equally long ones together: use "
            "one LazySample for each prompt"
        )


class CONDPrompts(comfy.conds.CONDRegular):
    """Rows that the host puts together at every step, in the same ways: put together once, and from then on the very
    same tensor, by which others can recognise it without looking at its values.

    made: what has been put together in this sampling
    owner: kept for as long as the sampling has these rows
    """

    def __init__(self, cond: Tensor, made: dict[Any, tuple[Any, Tensor]], owner: Any = None):
        super().__init__(cond)
        self.made, self.owner = made, owner

    def process_cond(self, batch_size: int, **kwargs: Any) -> CONDPrompts:
        key = batch_size, id(self.cond)
        if key not in self.made:
            self.made[key] = self.cond, comfy.utils.repeat_to_batch_size(self.cond, batch_size)
        return CONDPrompts(self.made[key][1], self.made)

    def concat(self, others: list[CONDPrompts]) -> Tensor:
        parts = (self.cond, *(other.cond for other in others))
        key = tuple(map(id, parts))
        if key not in self.made:  # with the parts, so that no other tensors take their ids
            self.made[key] = parts, torch.cat(parts)
        return self.made[key][1]
