"""The small model's latent space."""

from __future__ import annotations

import torch
from samples import scene

from lazydiff.core.tokens import patchify, unpatchify
from lazydiff.model.latent_space import PatchPCA, to_pixels


def test_latent_space_is_patchwise_and_orthogonal() -> None:
    latent = PatchPCA(192, 8)
    images = torch.cat([scene(i)[0] for i in range(8)]) * 2 - 1
    latent.fit(images)
    # All components: nothing is lost. 1e-5 of the range is fp32 rounding in two products of 192 terms.
    assert torch.allclose(latent.decode(latent.encode(images)), images, atol=1e-4)
    changed = images.clone()
    changed[..., 8:16, 8:16] = 0
    moved = (latent.encode(changed) != latent.encode(images)).any(1)
    assert moved[:, 1, 1].all() and moved.sum() == len(images)
    cells = patchify(latent.encode(images), 1)
    assert torch.allclose(cells.var((0, 1)), latent.variance, rtol=0.02)
    assert torch.equal(unpatchify(cells, (12, 12), 1), latent.encode(images))


def test_pixels_are_in_range_and_single_precision() -> None:
    image = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5])
    assert torch.equal(to_pixels(image), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    assert to_pixels(image.half()).dtype == torch.float32
