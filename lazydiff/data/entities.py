"""Entities of pictures, as COCO tells them: outlines or run lengths, each with a caption."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as run_lengths

MASK_SIZE = "a mask of another size"
RUN_LENGTHS = "run lengths that are damaged, or of another size"
OUTLINE = "an outline that is damaged"


class Refusal(Exception):
    """Why one picture is left out of the shards.

    reason: in words that all such pictures share; detail: what there is to say about this one
    """

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, " ".join(str(detail).split())


class Entity(NamedTuple):
    """A thing in a picture, or a hole that was made around one.

    mask: COCO's compressed run lengths, a hundredth of the pixels; caption: None where nobody has given one
    """

    mask: dict[str, Any]
    caption: str | None

    @classmethod
    def of_mask(cls, mask: np.ndarray, caption: str | None) -> Entity:
        """mask: bool [H, W]"""
        return cls(run_lengths.encode(np.asfortranarray(mask.astype(np.uint8))), caption)

    @classmethod
    def of_segmentation(cls, segmentation: Any, size: tuple[int, int], caption: str | None) -> Entity:
        """A segmentation as COCO and SA-1B have it: polygons, or run lengths in either form.

        size: height and width of the picture
        Errors: `Refusal` for what is neither, or of another size.
        """
        if isinstance(segmentation, list):
            return cls(_of_polygons(segmentation, size), caption)
        try:
            counts, own = segmentation["counts"], tuple(segmentation["size"])
            if own != size:
                raise Refusal(MASK_SIZE, f"{own[1]}×{own[0]}, not {size[1]}×{size[0]}")
            if isinstance(counts, list):
                mask = run_lengths.frPyObjects({"size": list(size), "counts": counts}, *size)
            else:
                mask = {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts}
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise Refusal(RUN_LENGTHS, error) from error
        if (found := count_pixels(mask["counts"])) != size[0] * size[1]:
            raise Refusal(RUN_LENGTHS, f"{found} pixels, not {size[0] * size[1]}")
        return cls(mask, caption)

    def pixels(self) -> np.ndarray:
        """The mask, bool [H, W]."""
        mask: np.ndarray = run_lengths.decode(self.mask)
        return mask.astype(bool)


def _of_polygons(polygons: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    try:
        corners = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    except (TypeError, ValueError) as error:
        raise Refusal(OUTLINE, error) from error
    if not corners or any(xy.ndim != 1 or len(xy) < 6 or len(xy) % 2 or not np.isfinite(xy).all() for xy in corners):
        raise Refusal(OUTLINE, "every polygon needs three corners or more")
    limits = np.array([size[1], size[0]], dtype=np.float64)  # annotators draw a little beyond the edge
    inside = [xy.reshape(-1, 2).clip(0, limits).ravel().tolist() for xy in corners]
    merged: dict[str, Any] = run_lengths.merge(run_lengths.frPyObjects(inside, *size))
    return merged


def count_pixels(counts: bytes) -> int:
    """How many pixels COCO's compressed run lengths tell of, −1 if they are no run lengths.

    pycocotools finds out when they are too many; where too few, it leaves the rest of the mask to chance.
    Five bits to a byte, the lowest first; from the fourth on, each is the difference to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for digit in (byte - 48 for byte in counts):
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return -1 if shift or min(runs, default=-1) < 0 else sum(runs)
