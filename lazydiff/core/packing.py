"""Rows of different sizes without padding: their tokens laid end to end in one sequence, as networks compute them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class Group(NamedTuple):
    """Rows of one size, which lie beside each other in the sequence and are attended to as a batch of their own."""

    rows: slice  # of the batch
    size: int  # how many they are
    tokens: int  # in each


@dataclass(frozen=True, eq=False)
class Packing:
    """How the valid tokens of a padded batch [B, n] lie in a sequence [1, Σn] that has no padding.

    places: [Σn] int64, of the sequence's tokens in the flattened batch [B·n]
    owners: [Σn] int64, the rows that they belong to
    shape: B, n
    """

    groups: tuple[Group, ...]
    places: Tensor
    owners: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, counts: Sequence[int], n: int, device: torch.device | str = "cpu") -> Packing:
        """counts: tokens in each row, the first of its n places"""
        groups = groups_of(counts)
        numbers = range(len(counts))
        rows = [row for group in groups for row in numbers[group.rows]]
        owners = torch.tensor(rows).repeat_interleave(torch.tensor([counts[row] for row in rows]))
        places = torch.cat([torch.arange(row * n, row * n + counts[row]) for row in rows])
        return cls(groups, places.to(device), owners.to(device), (len(counts), n))

    def pack(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [1, Σn, C]"""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, Σn, C] -> [B, n, C] with zeros at the padding"""
        rows, n = self.shape
        return x.new_zeros(rows * n, x.shape[-1]).index_copy(0, self.places, x[0]).unflatten(0, (rows, n))

    def spread(self, rows: Tensor) -> Tensor:
        """What each row has, [k, B, 1, C], for each token: [k, 1, Σn, C]; what all have, [k, 1, 1, C], is for each."""
        if rows.shape[1] == 1:
            return rows
        return rows.index_select(1, self.owners).transpose(1, 2)

    def take_apart(self, x: Tensor) -> list[Tensor]:
        """[1, heads, Σn, dim] -> each group's [rows, heads, tokens, dim]"""
        parts = x.split([group.size * group.tokens for group in self.groups], dim=2)
        return [
            rearrange(part, "1 h (b n) d -> b h n d", n=group.tokens)
            for part, group in zip(parts, self.groups, strict=True)
        ]

    @staticmethod
    def put_together(parts: Iterable[Tensor]) -> Tensor:
        """The inverse of `take_apart`."""
        return torch.cat([rearrange(part, "b h n d -> 1 h (b n) d") for part in parts], dim=2)


def groups_of(counts: Sequence[int]) -> tuple[Group, ...]:
    """Rows of the same size, as far as they are evenly spaced: then keys and values of theirs are views, no copies.

    Those of one canvas always are, in a batch tiled or repeated for variations and guidance. Empty rows are left out.
    """
    spaced: list[list[int]] = []
    last: dict[int, list[int]] = {}  # the group that rows of a size may still join
    for row, count in enumerate(counts):
        group = last.get(count)
        if group is not None and (len(group) == 1 or row - group[-1] == group[-1] - group[-2]):
            group.append(row)
        elif count:
            last[count] = [row]
            spaced.append(last[count])
    return tuple(
        Group(slice(rows[0], rows[-1] + 1, rows[1] - rows[0] if len(rows) > 1 else 1), len(rows), counts[rows[0]])
        for rows in spaced
    )
