"""A full-size model's parts meet on one device, in numbers of their own: VAE float32, T5 bfloat16, steps float16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from public_folders import NETWORK, save_clip, save_text_encoder, save_vae

from benchmarks.pretended_gpu import PretendedGPU
from lazydiff import LazyDiffusion, ModelConfig, SampleSettings, Sampling, edit
from lazydiff.evaluation.metrics import ClipSimilarity
from lazydiff.evaluation.regenerate import paint_baseline
from lazydiff.model.pretrained import load_text_encoder, load_vae

CUDA = torch.device("cuda")


def test_edits_and_their_measure(gpu: PretendedGPU, tmp_path: Path) -> None:
    text = load_text_encoder(save_text_encoder(tmp_path), dtype=torch.bfloat16)
    latent, similarity = load_vae(save_vae(tmp_path / "vae")), ClipSimilarity(save_clip(tmp_path / "clip"), CUDA)
    image, mask = torch.rand(1, 3, 80, 72), torch.zeros(1, 1, 80, 72)
    mask[..., 20:50, 20:50] = 1
    for depth in (1, 0):
        config = ModelConfig(replace(NETWORK, encoder_depth=depth), "iddpm", "tiny", sampling=Sampling(steps=2))
        model = LazyDiffusion(config, text, latent).eval().requires_grad_(False)
        model.initialise(0)
        model.to("cuda").decoder.half()
        if depth:
            settings = SampleSettings(sketch=torch.rand_like(image))
            results = [edit(model, image, mask, "a red house", [1, 2], settings)]
        else:
            results = [paint_baseline(model, image, mask, "a red house", 3, crop) for crop in (False, True)]
        for result in results:
            assert result.device == image.device and result.dtype == image.dtype
            assert not ((result != image) & (mask == 0)).any()
            assert 0 <= similarity((result[0] * 255).byte(), "a red house") <= 1
