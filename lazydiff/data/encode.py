"""Latents of pictures and features of captions, by the models of a user, as shards keep them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..core.pictures import from_array
from ..model.latent_space import DiffusersVAE
from ..model.pretrained import pretrained_fingerprint
from ..model.text import PretrainedT5
from .entities import Refusal
from .shards import LATENT, TEXT, LatentOrigin, TextOrigin, tensor_bytes

NOT_NUMBERS = "latents or text features that are not numbers"


class Encoder:
    """A VAE and a text encoder, of which either may be missing."""

    def __init__(self, vae: DiffusersVAE | None, text: PretrainedT5 | None):
        self.vae, self.text = vae, text

    @cached_property
    def latent_origin(self) -> LatentOrigin | None:
        vae = self.vae
        return None if vae is None else LatentOrigin(pretrained_fingerprint(vae), vae.cell, vae.channels)

    @cached_property
    def text_origin(self) -> TextOrigin | None:
        text = self.text
        return None if text is None else TextOrigin(pretrained_fingerprint(text), text.width, text.max_length)

    def members(self, pixels: np.ndarray, masks: Sequence[np.ndarray], captions: Sequence[str]) -> dict[str, bytes]:
        """What is computed of a sample.

        pixels: uint8 [H, W, 3], as they are stored; masks: bool [H, W] of each hole; captions: of each, not too long
        Errors: `Refusal` for values that leave half precision.
        """
        tensors = {}
        if self.vae is not None:
            tensors[LATENT] = self.latents(self.vae, pixels, masks)
        if self.text is not None:
            tensors[TEXT] = self.features(self.text, captions)
        for part in tensors.values():
            if not all(values.half().isfinite().all() for values in part.values()):
                raise Refusal(NOT_NUMBERS, "another --dtype may help")
        return {name: tensor_bytes(part) for name, part in tensors.items()}

    @torch.no_grad()
    def latents(self, vae: DiffusersVAE, pixels: np.ndarray, masks: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The posterior of a picture, and of it with mid grey in each hole (paper, equation 1), one by one: a batch
        would be no faster at this size, and take more memory."""
        image = from_array(pixels).to(vae.variance.device) * 2 - 1
        visible = [image * torch.from_numpy(~mask).to(image) for mask in masks]
        means, deviations = zip(*(vae.posterior(each) for each in (image, *visible)), strict=True)
        return {
            "mean": means[0][0],
            "deviation": deviations[0][0],
            "visible.mean": torch.cat(means[1:]),
            "visible.deviation": torch.cat(deviations[1:]),
        }

    @torch.no_grad()
    def features(self, text: PretrainedT5, captions: Sequence[str]) -> dict[str, Tensor]:
        """Hidden states of each caption and of no text, cut to their lengths."""
        states, mask = text(captions)
        rows = {str(i): state[valid] for i, (state, valid) in enumerate(zip(states, mask, strict=True))}
        return {**rows, "empty": self.no_text}

    @cached_property
    def no_text(self) -> Tensor:
        assert self.text is not None
        states, mask = self.text([""])
        return states[0][mask[0]]

    def cut(self, caption: str) -> str:
        """As much of a caption as the text encoder reads, in whole words where it has any."""
        text = self.text
        if text is None or len(text.split(caption)) <= text.max_length:
            return caption
        over = bisect_right(range(len(caption)), text.max_length, key=lambda end: len(text.split(caption[:end])))
        whole_words, space, _ = caption[:over].rpartition(" ")  # with one sign more than fits: it may be a space
        return whole_words if space else caption[: over - 1]
