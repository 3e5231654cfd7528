"""Canvases that grow: what is added to a picture is a hole."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Margins(NamedTuple):
    """Pixels that are added on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def outpaint(image: Tensor, mask: Tensor, margins: Margins, overlap: int = 0) -> tuple[Tensor, Tensor]:
    """A picture with margins, and a mask of what is to be generated of it: the margins, and what the mask says.

    image: [B, C, H, W]; mask: [B, 1, H, W], 1 = hole. What is added repeats the nearest pixel, for what an encoder sees
        of the picture's own edge; overlap: pixels along each new side that are hole too
    Errors: ValueError for margins below 0.
    """
    if min(*margins, overlap) < 0:
        raise ValueError(f"the margins are {', '.join(map(str, margins))} px and the overlap {overlap}: none may be "
                         "below 0")  # fmt: skip
    left, top, right, bottom = margins
    sides, (height, width) = (left, right, top, bottom), image.shape[-2:]
    canvas, hole = F.pad(image, sides, mode="replicate"), F.pad(mask, sides, value=1.0)
    if left:
        hole[..., : left + overlap] = 1
    if right:
        hole[..., max(left + width - overlap, 0) :] = 1
    if top:
        hole[..., : top + overlap, :] = 1
    if bottom:
        hole[..., max(top + height - overlap, 0) :, :] = 1
    return canvas, hole
