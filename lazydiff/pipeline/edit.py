"""From a canvas, a mask and a prompt to edited canvases: encode once, sample hole tokens, decode, blend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.masks import binarise
from ..model.lazydiffusion import LazyDiffusion
from .decode import Blend, composite, decode
from .encode import check_canvas, check_rows, check_values, encode, size_text
from .fit import Fit
from .sample import SampleSettings, sample

BLENDED = 4 * 1024**2  # pixels that are decoded and blended at a time: about 0.4 GB


@torch.no_grad()
def edit(
    model: LazyDiffusion,
    image: Tensor,
    mask: Tensor,
    prompt: str,
    seeds: Sequence[int] = (0,),
    settings: SampleSettings = SampleSettings(),  # noqa: B008
    blend: Blend = "poisson",
) -> Tensor:
    """Variations [S, 3, H, W] of a canvas, one per seed; every pixel outside the mask is bit-identical to the input's.

    image: [1, 3, H, W] in 0…1, of any size (see `Fit`); mask: [1, 1, H, W] in 0…1, above 0.5 = hole. Both on any
        device: the work is done where the model is, the result is where the image was and of its number type
    settings: as of `sample`; a sketch is of the image's size
    Errors: ValueError that says what is wrong with the input. An empty mask returns the input without running anything.
    The result has the image's number type; what lies between is computed in fp32.
    """
    check_canvas(image, mask, model.config.network.token)
    check_rows([prompt] * len(seeds), seeds)
    sketch = settings.sketch
    if sketch is not None and sketch.shape != image.shape:
        raise ValueError(f"the sketch is {size_text(sketch)} and the canvas {size_text(image)}: they must be equal")
    mask = binarise(mask)
    if not mask.any():
        return image.repeat(len(seeds), 1, 1, 1)
    fit, canvas = Fit.of(mask, model.config.network.canvas), image.to(model.device).float()
    context = encode(model, *fit.to_model(canvas, mask.to(model.device)))
    if sketch is not None:
        check_values("sketch", sketch)
        settings = settings._replace(sketch=fit.to_model(sketch.to(model.device).float(), mask)[0])
    tokens = sample(model, context, [prompt] * len(seeds), seeds, settings)
    # A few at a time: blending takes many times the memory of the pictures that come of it.
    rows, edited = max(BLENDED // image[0, 0].numel(), 1), []
    for part in tokens.split(rows):
        edited.append(composite(image, fit.from_model(decode(model, context, part), canvas), mask, blend))
    return torch.cat(edited)
