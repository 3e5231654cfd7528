"""Public VAEs and text encoders, read from folders as diffusers and transformers save them; nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import ModelConfig, NetworkConfig
from .latent_space import DiffusersVAE
from .text import PretrainedT5

TOKENIZERS = ("spiece.model", "tokenizer.json")  # one of which every folder of a tokenizer has
SIGNS = 1024  # of each tensor that a fingerprint reads


def load_vae(folder: Path | str, dtype: torch.dtype = torch.float32) -> DiffusersVAE:
    """Read a diffusers `AutoencoderKL` for inference.

    folder: its own, or a pipeline's with `vae/` in it
    Errors: ValueError for a folder that is none of these, or weights that are not all there.
    """
    from diffusers import AutoencoderKL  # here, because it takes seconds and few callers need it

    own = part_folder(folder, "vae", "_class_name", "AutoencoderKL")
    return DiffusersVAE(read_part(AutoencoderKL, own, torch_dtype=dtype).eval().requires_grad_(False))


def load_text_encoder(folder: Path | str, max_length: int = 120, dtype: torch.dtype = torch.float32) -> PretrainedT5:
    """Read a T5 encoder of transformers with its tokenizer, for inference.

    folder: a pipeline's with `text_encoder/` and `tokenizer/` in it, or the encoder's own with the tokenizer inside or
        beside it
    max_length: most tokens that a prompt may have
    Errors: ValueError for a folder that is none of these, weights that are not all there, or half precision, which the
        larger of these encoders leave: their features would not be numbers.
    """
    if dtype == torch.float16:
        raise ValueError("T5's values are too large for float16: choose bfloat16 or float32 for the text encoder")
    from transformers import AutoTokenizer, T5EncoderModel

    own = part_folder(folder, "text_encoder", "model_type", "t5")
    beside = own.parent / own.name.replace("text_encoder", "tokenizer")  # text_encoder_3 has tokenizer_3
    there = [each for each in (own, beside) if any((each / name).is_file() for name in TOKENIZERS)]
    if not there:
        raise ValueError(f"{own}: there is no tokenizer in it or in {beside} ({' or '.join(TOKENIZERS)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(there[0], local_files_only=True)
    except Exception as error:  # whatever the library makes of damaged files
        raise ValueError(f"{there[0]}: its tokenizer cannot be read ({error})") from error
    t5 = read_part(T5EncoderModel, own).to(dtype).eval().requires_grad_(False)
    if len(tokenizer) > t5.config.vocab_size:
        raise ValueError(f"{there[0]}: {len(tokenizer)} tokens, and the text encoder knows {t5.config.vocab_size}")
    return PretrainedT5(tokenizer, t5, max_length)


def pretrained_fingerprint(module: nn.Module) -> str:
    """A name (16 hex digits) of all that latents or features depend on, by which shards, checkpoints and trainings know
    with what they were made.

    It is taken from names, shapes and the signs of the first values of each tensor, and a VAE's shift and scale: no
    rounding to another precision changes a sign. A VAE's decoder does not count: another one may read the same latents.
    """
    scale = [module.shift, module.scale] if isinstance(module, DiffusersVAE) else []
    digest = hashlib.sha256(json.dumps(scale).encode())
    for name, parameter in module.named_parameters():
        if not name.startswith(("vae.decoder.", "vae.post_quant_conv.")):
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:SIGNS].signbit().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def find_misfit(network: NetworkConfig, text: Any, latent: Any) -> str:
    """Why a model of these sizes cannot work with a text encoder or a VAE; "" if it can, as far as is known of them."""
    if isinstance(latent, DiffusersVAE) and (latent.channels, latent.cell) != (network.channels, network.cell):
        needed, given = (f"{each.channels} channels per {each.cell} px" for each in (network, latent))
        return f"its latents have {needed}, and the VAE's {given}: give it the VAE that it was trained with"
    if isinstance(text, PretrainedT5) and text.width != network.text_width:
        return f"it reads text of width {network.text_width}, and the text encoder's is {text.width} wide"
    return ""


def find_strangers(config: ModelConfig, text: Any, latent: Any) -> list[str]:
    """One line for each of text encoder and VAE that is another one than the model was trained with."""
    lines = []
    for name, part, trained in (("text encoder", text, config.text_encoder), ("VAE", latent, config.vae)):
        if trained is not None and isinstance(part, DiffusersVAE | PretrainedT5):
            given = pretrained_fingerprint(part)
            if given != trained:
                lines.append(f"{config.name} was trained with another {name}: {trained}, and this one is {given}")
    return lines


def part_folder(folder: Path | str, part: str, key: str, kind: str) -> Path:
    """The folder of one part of a pipeline: the one given, or that in it which is called so.

    Errors: ValueError unless it has a config.json in which `key` is `kind`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    own = folder / part if (folder / part / "config.json").is_file() else folder
    try:
        config = json.loads((own / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: there is no config.json in it, nor in {part}/ in it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{own / 'config.json'} cannot be read ({error})") from error
    found = config.get(key) if isinstance(config, dict) else None
    if found != kind:
        raise ValueError(f"{own}: its config.json is of {found or 'something else'}, and {kind} is needed")
    return own


def read_part(kind: Any, folder: Path, **how: Any) -> Any:
    """A model of diffusers or transformers. Errors: ValueError unless all of its weights are there and fit."""
    try:
        model, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **how)
    except Exception as error:  # whatever the libraries make of damaged files
        raise ValueError(f"{folder}: its weights cannot be read ({error})") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")
    return model
