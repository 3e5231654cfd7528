"""A PixArt-shaped model with public parts around it: diffusers' AutoencoderKL and transformers' T5, tiny and random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import BatchEncoding, T5Config, T5EncoderModel

from lazydiff import CheckpointError, LazyDiffusion, ModelConfig, Sampling, edit, load_checkpoint, save_checkpoint
from lazydiff.model.config import PRESETS
from lazydiff.model.latent_space import DiffusersVAE
from lazydiff.model.text import PretrainedT5


def tokenizer(prompts: list[str], padding: bool, return_tensors: str) -> BatchEncoding:
    """One token per word and an end token, as a tokenizer of transformers returns them."""
    rows = [[*(2 + len(word) for word in prompt.split()), 1] for prompt in prompts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return BatchEncoding({"input_ids": ids, "attention_mask": (ids != 0).long()})


@pytest.fixture
def text() -> PretrainedT5:
    t5 = T5EncoderModel(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    return PretrainedT5(tokenizer, t5.eval(), max_length=9)


@pytest.fixture
def latent() -> DiffusersVAE:
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return DiffusersVAE(vae.eval())


@pytest.fixture
def model(text: PretrainedT5, latent: DiffusersVAE) -> LazyDiffusion:
    network = replace(
        PRESETS["pixart-1024"], canvas=128, width=24, heads=2, decoder_depth=2, encoder_depth=2, text_width=16
    )
    model = LazyDiffusion(ModelConfig(network, "iddpm", "tiny", sampling=Sampling(steps=3)), text, latent)
    model.initialise(0)
    return model.eval().requires_grad_(False)


def test_edit_with_a_real_latent_space(model: LazyDiffusion) -> None:
    image, mask = torch.rand(1, 3, 128, 96), torch.zeros(1, 1, 128, 96)
    mask[..., 40:90, 20:70] = 1
    result = edit(model, image, mask, "a red tree", [1, 2])
    outside = (mask == 0).expand_as(image)
    for one in result:
        assert torch.equal(one[None][outside], image[outside])
        assert not torch.equal(one[None][~outside], image[~outside])
    with pytest.raises(ValueError, match="shorten"):
        edit(model, image, mask, "word " * 9)


def test_checkpoint_holds_the_networks_alone(
    model: LazyDiffusion, text: PretrainedT5, latent: DiffusersVAE, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, torch.float32)
    loaded = load_checkpoint(path, text, latent)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(CheckpointError, match="no text encoder"):
        load_checkpoint(path)


def test_latents_are_the_scaled_mode(latent: DiffusersVAE) -> None:
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = latent.vae.encode(image).latent_dist.mean * latent.vae.config.scaling_factor
    assert torch.equal(latent.encode(image), expected)
    assert latent.decode(expected).shape == image.shape
