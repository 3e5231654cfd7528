"""Stock models of the host with next to no width and random weights, one of each kind; edits with them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comfyui import accepted

from .in_process import Pack
from .tiny_sizes import TINY, UNETS


def tiny(name: str, seed: int = 0, **changed: Any) -> Any:
    """A MODEL, built by the host's configuration of the architecture; changed: other sizes."""
    import comfy.ldm.lumina.model
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    if name == "z-image" and "z_image_modulation" not in inspect.signature(comfy.ldm.lumina.model.NextDiT).parameters:
        pytest.skip("this release of ComfyUI has no Z-Image")
    kind, sizes, *_ = (TINY | UNETS)[name]
    if not hasattr(comfy.supported_models, kind):
        pytest.skip(f"this release of ComfyUI has no {name}")
    unet = sizes | changed
    if kind.startswith("PixArt"):
        unet |= {"input_size": 64, "in_channels": 4, "pred_sigma": True, "pe_interpolation": 1, "model_max_length": 8}
    unet = accepted(kind, unet)
    config = getattr(comfy.supported_models, kind)(unet)
    config.unet_config |= unet  # some configurations say sizes of their own
    config.set_inference_dtype(torch.float32, None)
    with small_adapter(kind):
        model = config.get_model({}, "")
    randomise(model.diffusion_model, seed)
    return ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


@contextmanager
def small_adapter(kind: str) -> Iterator[None]:
    """Anima's network for words, whose sizes no configuration tells."""
    if kind != "Anima":
        yield
        return
    import comfy.ldm.anima.model as anima

    sizes = {"source_dim": 24, "target_dim": 24, "model_dim": 24, "num_layers": 1, "num_heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anima, "LLMAdapter", partial(anima.LLMAdapter, **sizes))
        yield


def randomise(network: torch.nn.Module, seed: int = 0) -> None:
    """Weights that are neither zero nor huge: whatever a block does is seen in what comes out."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        square = parameter.ndim == 4 and parameter.shape[-1] > 2  # a UNet's convolutions
        inputs = parameter[0].numel() if square else parameter.shape[-1]
        spread = 0.3 if parameter.ndim == 1 else (0.5 if square else 1.5) / inputs**0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    for name, buffer in network.named_buffers():
        if name == "pos_embed":  # of SD3, which takes it from the checkpoint
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    for module in network.modules():
        if "RMSNorm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            module.weight.data.add_(1)


def prompt(name: str, tokens: int, seed: int = 0, **more: Any) -> list[list[Any]]:
    """A CONDITIONING for the architecture."""
    _, _, width, pooled = (TINY | UNETS)[name]
    generator = torch.Generator().manual_seed(seed)
    told: dict[str, Any] = {"pooled_output": torch.randn(1, pooled, generator=generator) if pooled else None}
    if name == "hunyuan-dit":
        told |= {
            "conditioning_mt5xl": torch.randn(1, 8, 32, generator=generator),
            "attention_mask": torch.ones(1, tokens), "attention_mask_mt5xl": torch.ones(1, 8),
        }  # fmt: skip
    if name == "hidream":
        told["conditioning_llama3"] = torch.randn(1, 2, 7, 20, generator=generator)
    if name in ("lumina2", "z-image", "omnigen2", "boogu"):
        told["attention_mask"] = torch.ones(1, tokens, dtype=torch.int64)
    return [[torch.randn(1, tokens, width, generator=generator), told | more]]


def latent(model: Any, height: int = 20, width: int = 20, rows: int = 1, seed: int = 0) -> Tensor:
    """A canvas latent."""
    shape = model.model.latent_format
    generator = torch.Generator().manual_seed(seed)
    frames = (1,) if shape.latent_dimensions == 3 else ()
    return torch.randn(rows, shape.latent_channels, *frames, height, width, generator=generator)


class TinyVAE:
    """Colours of cells as latents, and back; of videos, one that takes a batch of images for frames."""

    def __init__(self, channels: int = 16, frames: bool = False, cell: int = 8):
        self.frames, self.cell = frames, cell
        self.mix = torch.randn(channels, 3, generator=torch.Generator().manual_seed(0))

    def spacial_compression_encode(self) -> int:
        return self.cell

    def encode(self, image: Tensor) -> Tensor:
        cells = F.avg_pool2d(image[..., :3].movedim(-1, 1), self.cell)
        latent = torch.einsum("cd,bdhw->bchw", self.mix, cells)
        return latent.movedim(0, 1).unsqueeze(0) if self.frames else latent

    def decode(self, latent: Tensor) -> Tensor:
        latent = latent[:, :, 0] if latent.ndim == 5 else latent
        cells = torch.einsum("dc,bchw->bdhw", torch.linalg.pinv(self.mix), latent)
        return F.interpolate(cells, scale_factor=self.cell).movedim(1, -1)


class Edit:
    """A canvas with a hole for one of the tiny models, and samplings of it with and without a context."""

    def __init__(self, pack: Pack, name: str, model: Any = None, rows: int = 1):
        self.pack, self.name = pack, name
        self.model = tiny(name) if model is None else model
        self.cell = pack.part("nodes.host.architectures").downscale(self.model)  # px
        self.canvas = latent(self.model, 256 // self.cell, 320 // self.cell, rows)
        self.mask = torch.zeros(1, 1, 256, 320)  # px
        self.mask[..., 72:150, 130:210] = 1
        words = (8, 8) if name == "hunyuan-dit" else (9, 5)
        self.positive, self.negative = prompt(name, words[0], 1), prompt(name, words[1], 2)

    @property
    def cells(self) -> Tensor:
        """The noise mask of the latent, alike within a token."""
        token = self.pack.part("nodes.host.architectures").token_size(self.model)
        cells = F.max_pool2d(self.mask, token)
        cells = cells.repeat_interleave(token // self.cell, 2).repeat_interleave(token // self.cell, 3)
        return cells.unsqueeze(2) if self.canvas.ndim == 5 else cells

    @property
    def hole(self) -> Tensor:
        """The latent cells that may change, those that the mask touches; bool, of the latent's shape."""
        cells = F.max_pool2d(self.mask, self.cell) > 0
        return (cells.unsqueeze(2) if self.canvas.ndim == 5 else cells).expand_as(self.canvas)

    def context(self, mode: str = "anchors", **settings: Any) -> Any:
        kv, cache = self.pack.part("nodes.host.kv_sampling"), self.pack.part("lazydiff.cache.kv_cache")
        chosen = cache.KVSettings(mode=mode, **settings)
        return kv.kv_context(self.model, self.canvas[: len(self.mask)], self.mask, chosen, None)

    def cache(self, context: Any) -> Any:
        """What samplings on a context have kept, if its settings say that they keep anything."""
        return self.pack.part("lazydiff.cache.kv_context").cache_of(context)

    def attach(self, context: Any, model: Any = None) -> Any:
        """A lazy MODEL."""
        return self.pack.part("nodes.host.contexts").attach(self.model if model is None else model, context)

    def sigmas(self, steps: int, model: Any = None) -> Tensor:
        import comfy.samplers

        return comfy.samplers.KSampler(model or self.model, steps, "cpu", "euler", "simple", 1.0).sigmas

    @torch.inference_mode()
    def sample(
        self, model: Any = None, steps: int = 4, cfg: float = 3.0, sampler: str = "euler", seed: int = 5,
        sigmas: Tensor | None = None, callback: Any = None,
    ) -> Tensor:  # fmt: skip
        """The host's sampler on the canvas with its noise mask."""
        import comfy.sample
        import comfy.samplers

        model = self.model if model is None else model
        return comfy.sample.sample_custom(
            model, comfy.sample.prepare_noise(self.canvas, seed), cfg, comfy.samplers.sampler_object(sampler),
            self.sigmas(steps) if sigmas is None else sigmas, self.positive, self.negative, self.canvas, self.cells,
            callback, disable_pbar=True, seed=seed,
        )  # fmt: skip

    def counted(self, model: Any = None, **how: Any) -> tuple[Tensor, list[int]]:
        """The result, and how many tokens came out of the last block in each call of the model."""
        shape, counts = self.pack.part("nodes.host.architectures").architecture(self.model), []
        network = self.model.model.diffusion_model
        if shape.output is None:  # its last part sees what the last block computes
            module = list(getattr(network, shape.stages[-1].blocks)[-1].children())[-1]
        else:
            module = getattr(network, shape.output)
        hook = module.register_forward_pre_hook(lambda module, args: counts.append(args[0].flatten(1, -2).shape[1]))
        try:
            return self.sample(model, **how), counts
        finally:
            hook.remove()

    def dense_calls(self, model: Any, context: Any, **how: Any) -> int:
        """In how many of its calls a sampling computes every token."""
        return sum(count >= context.hole.total for count in self.counted(model, **how)[1])

    def replay_error(self, model: Any = None, **settings: Any) -> float:
        """A step sampled twice, which first records and then replays at the very same noise level.

        Returns the error of the replay in the hole, relative to the largest value of the stock sampler's result.
        """
        sigmas, hole = self.sigmas(2)[1:], self.hole
        expected = self.sample(model, sigmas=sigmas)
        context = self.context(reuse=True, **settings)
        lazy = self.attach(context, model)
        recorded, dense = self.counted(lazy, sigmas=sigmas)
        assert torch.equal(recorded[hole], expected[hole]) and min(dense) >= context.hole.total
        replayed, lazily = self.counted(lazy, sigmas=sigmas)
        assert len(lazily) == len(dense) and max(lazily) < context.hole.total
        assert torch.equal(replayed[~hole], self.canvas[~hole])
        return float((replayed - expected)[hole].abs().max() / expected[hole].abs().max())


class UNetEdit(Edit):
    """An edit whose calls of the model are counted by what its last convolution computes."""

    def counted(self, model: Any = None, **how: Any) -> tuple[Tensor, list[int]]:
        """The result, and how many cells went into the last convolution in each call."""
        counts: list[int] = []
        last = self.model.model.diffusion_model.out[2]
        own = last._conv_forward

        def count(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            counts.append(x.shape[-2] * x.shape[-1])
            return own(x, *args, **kwargs)

        last._conv_forward = count
        try:
            return self.sample(model, **how), counts
        finally:
            del last._conv_forward

    def recording_error(self, model: Any = None, **settings: Any) -> float:
        """A step whose recording has its very own canvas, noise and noise level: of one picture, 0 in the hole.

        Returns its error in the hole, relative to the largest value of the stock sampler's result.
        """
        import comfy.sample

        sigmas, hole = self.sigmas(2)[1:], self.hole
        self.canvas = torch.where(hole, torch.zeros_like(self.canvas), self.canvas)
        noise = comfy.sample.prepare_noise(self.canvas, 5)
        expected, lazy = self.sample(model, sigmas=sigmas), self.attach(self.context("recorded", **settings), model)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(self.pack.part("nodes.host.kv_recording"), "recorded_noise", lambda shape: noise)
            out, cells = self.counted(lazy, sigmas=sigmas)
        whole = math.prod(hole.shape[-2:])
        assert max(cells) >= whole > cells[-1], "the step itself is lazy"
        assert torch.equal(out[~hole], self.canvas[~hole])
        return float((out - expected)[hole].abs().max() / expected[hole].abs().max())
