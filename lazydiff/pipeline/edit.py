"""From a canvas, a mask and a prompt to edited canvases: encode once, sample hole tokens, decode, blend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.masks import binarise
from ..model.lazydiffusion import LazyDiffusion
from ..sampling.samplers import Callback
from .decode import Blend, composite, decode
from .encode import check_canvas, encode, size_text
from .fit import Fit
from .sample import SampleSettings, sample


@torch.no_grad()
def edit(
    model: LazyDiffusion,
    image: Tensor,
    mask: Tensor,
    prompt: str,
    seeds: Sequence[int] = (0,),
    settings: SampleSettings = SampleSettings(),  # noqa: B008
    *,
    blend: Blend = "poisson",
    callback: Callback | None = None,
) -> Tensor:
    """Variations [S, 3, H, W] of a canvas, one per seed; every pixel outside the mask is bit-identical to the input's.

    image: [1, 3, H, W] in 0…1, of any size (see `Fit`); mask: [1, 1, H, W] in 0…1, above 0.5 = hole. Both on any
        device: the work is done where the model is, the result is where the image was and of its number type
    settings: as of `sample`; a sketch is of the image's size
    callback: called as callback(done, total, x̂) after each step; what it raises ends the edit
    Errors: ValueError that says what is wrong with the input. An empty mask returns the input without running anything.
    """
    check_canvas(image, mask, model.config.network.token)
    sketch = settings.sketch
    if sketch is not None and sketch.shape != image.shape:
        raise ValueError(f"the sketch is {size_text(sketch)} and the canvas {size_text(image)}: they must be equal")
    mask = binarise(mask)
    if not mask.any():
        return image.repeat(len(seeds), 1, 1, 1)
    fit, canvas, mask = Fit.of(image, model.config.network.canvas), image.to(model.device), mask.to(model.device)
    context = encode(model, *fit.to_model(canvas.float(), mask))
    if sketch is not None:
        settings = settings._replace(sketch=fit.to_model(sketch.to(model.device).float(), mask)[0])
    tokens = sample(model, context, [prompt] * len(seeds), seeds, settings, callback)
    return composite(canvas, fit.from_model(decode(model, context, tokens)), mask, blend).to(image.device)
