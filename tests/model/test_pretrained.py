"""Public VAEs and text encoders are read from their folders; other folders are refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from public_folders import save_pixart, save_text_encoder, save_vae
from safetensors.torch import load_file, save_file

from lazydiff.model.latent_space import DiffusersVAE
from lazydiff.model.pixart_weights import Layout, from_pixart
from lazydiff.model.pretrained import load_text_encoder, load_vae, pretrained_fingerprint


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vae/, text_encoder/ and tokenizer/; nothing of it is changed."""
    torch.manual_seed(0)
    folder = save_text_encoder(tmp_path_factory.mktemp("pipeline"))
    save_vae(folder / "vae", shift_factor=0.5, scaling_factor=1.5)
    return folder


@pytest.fixture
def copied(pipeline: Path, tmp_path: Path) -> Path:
    """One to be changed."""
    return Path(shutil.copytree(pipeline, tmp_path / "pipeline"))


def test_latents_are_shifted_and_scaled(pipeline: Path) -> None:
    """As diffusers' pipelines do: (z - shift) · scale, and back."""
    latent, image = load_vae(pipeline), torch.rand(2, 3, 32, 48) * 2 - 1
    normal = latent.vae.encode(image).latent_dist
    mean, deviation = latent.posterior(image)
    assert torch.equal(mean, (normal.mean - 0.5) * 1.5) and torch.equal(latent.encode(image), mean)
    assert torch.equal(deviation, normal.std * 1.5)
    expected = latent.vae.decode(normal.mean).sample
    torch.testing.assert_close(latent.decode(mean), expected, atol=1e-5, rtol=0)  # the scale is taken off by a division
    assert (latent.channels, latent.cell, mean.shape) == (4, 8, (2, 4, 4, 6))


def test_drawn_latents_are_those_of_the_posterior(pipeline: Path) -> None:
    latent, image = load_vae(pipeline), torch.rand(1, 3, 32, 32) * 2 - 1
    drawn = latent.vae.encode(image).latent_dist.sample(torch.Generator().manual_seed(3))
    mean, deviation = latent.posterior(image)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(mean + deviation * noise, (drawn - 0.5) * 1.5, atol=1e-5, rtol=0)  # sums in other order


def test_features_are_transformers_own(pipeline: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    text = load_text_encoder(pipeline)
    features, mask = text(["a red house", ""])
    tokens = AutoTokenizer.from_pretrained(pipeline / "tokenizer", local_files_only=True)(["a red house"])["input_ids"]
    expected = T5EncoderModel.from_pretrained(pipeline / "text_encoder")(torch.tensor(tokens)).last_hidden_state
    torch.testing.assert_close(features[:1, : len(tokens[0])], expected, atol=1e-5, rtol=0)  # padded keys add zeros
    assert mask.sum(1).tolist() == [len(tokens[0]), 1] and text.width == features.shape[2] == 16
    with pytest.raises(ValueError, match="shorten"):
        load_text_encoder(pipeline, max_length=3)(["a red house"])


def test_a_part_is_found_in_its_own_folder_too(copied: Path) -> None:
    assert load_vae(copied / "vae").scale == 1.5
    assert load_text_encoder(copied / "text_encoder").split("red")[-1] == "</s>"  # its tokenizer lies beside it
    (copied / "tokenizer").rename(copied / "tokenizer_3")
    (copied / "text_encoder").rename(copied / "text_encoder_3")
    load_text_encoder(copied / "text_encoder_3")
    for file in (copied / "tokenizer_3").iterdir():
        file.rename(copied / "text_encoder_3" / file.name)  # or inside
    load_text_encoder(copied / "text_encoder_3")


def test_a_fingerprint_survives_rounding_and_nothing_else(pipeline: Path, tmp_path: Path) -> None:
    for load in (load_vae, load_text_encoder):
        module = load(pipeline)
        name = pretrained_fingerprint(module)
        assert len(name) == 16 and name == pretrained_fingerprint(load(pipeline, dtype=torch.bfloat16))
        assert name == pretrained_fingerprint(module.half()) == pretrained_fingerprint(module.bfloat16().float())
        with torch.no_grad():
            next(module.parameters()).neg_()
        assert pretrained_fingerprint(module) != name
    names = {pretrained_fingerprint(load_vae(save_vae(tmp_path / str(i), scaling_factor=0.1))) for i in range(2)}
    assert len(names) == 2  # of one shape, with other weights


def test_a_fingerprint_is_that_of_the_latents(pipeline: Path) -> None:
    latent = load_vae(pipeline)
    name = pretrained_fingerprint(latent)
    for parameter in (*latent.vae.decoder.parameters(), *latent.vae.post_quant_conv.parameters()):
        torch.nn.init.normal_(parameter)
    assert pretrained_fingerprint(latent) == name
    latent.scale = 1.6
    assert pretrained_fingerprint(latent) != name


def drop_weight(folder: Path, part: str, file: str) -> None:
    state = load_file(folder / part / file)
    state.pop(min(state))
    save_file(state, folder / part / file, {"format": "pt"})


def other_kind(folder: Path, part: str, key: str) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "something-else"}))


VAE_FILE, TEXT_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


@pytest.mark.parametrize(
    "load, harm, message",
    [
        (load_vae, shutil.rmtree, "there is no such folder"),
        (load_vae, lambda f: (f / "vae" / "config.json").unlink(), "no config.json in it, nor in vae/ in it"),
        (load_vae, lambda f: (f / "vae" / "config.json").write_text("{"), "config.json cannot be read"),
        (load_vae, lambda f: (f / "vae" / "config.json").write_text("[]"), "config.json is of something else"),
        (load_vae, lambda f: other_kind(f, "vae", "_class_name"), "is of something-else, and AutoencoderKL is needed"),
        (load_vae, lambda f: (f / "vae" / VAE_FILE).unlink(), "its weights cannot be read"),
        (load_vae, lambda f: (f / "vae" / VAE_FILE).write_bytes(b"no weights"), "its weights cannot be read"),
        (load_vae, lambda f: drop_weight(f, "vae", VAE_FILE), "weights (are missing|cannot be read)"),
        (load_text_encoder, lambda f: other_kind(f, "text_encoder", "model_type"), "something-else, and t5 is needed"),
        (load_text_encoder, lambda f: (f / "text_encoder" / TEXT_FILE).unlink(), "its weights cannot be read"),
        (load_text_encoder, lambda f: drop_weight(f, "text_encoder", TEXT_FILE), "[12] weights are missing"),
        (load_text_encoder, lambda f: shutil.rmtree(f / "tokenizer"), "no tokenizer in it or in"),
        (load_text_encoder, lambda f: (f / "tokenizer" / "spiece.model").write_bytes(b"x"), "tokenizer cannot be read"),
    ],
)  # fmt: skip
def test_other_folders_are_refused(
    copied: Path, load: Callable[[Path], object], harm: Callable[[Path], object], message: str
) -> None:
    harm(copied)
    with pytest.raises(ValueError, match=message) as error:
        load(copied)
    assert str(copied) in str(error.value)


def test_half_precision_is_refused_for_t5(pipeline: Path) -> None:
    with pytest.raises(ValueError, match="choose bfloat16 or float32"):
        load_text_encoder(pipeline, dtype=torch.float16)
    assert isinstance(load_vae(pipeline, torch.float16), DiffusersVAE)


@pytest.mark.parametrize("layout", ["original", "comfy", "diffusers"])
def test_pixart_is_saved_as_people_have_it(tmp_path: Path, layout: Layout) -> None:
    file = save_pixart(tmp_path / "pixart", layout)
    assert "blocks.1.mlp.fc2.bias" in from_pixart(load_file(file))
    assert save_pixart(tmp_path / "one.safetensors", layout) == tmp_path / "one.safetensors"
