"""PixArt-α's published weights for `LazyDecoder`: as its authors, ComfyUI and diffusers lay them out, without loss."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..core.checks import shortened
from ..core.files import check_file
from .config import NetworkConfig
from .decoder import LazyDecoder

# LazyDecoder's layers, which are the original's, and those of diffusers' PixArtTransformer2DModel that stand for them
# (several: stacked along dimension 0). Each has a weight and a bias; tables are parameters themselves.
LAYERS: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "ctx_fuse": ("ctx_fuse",),
    "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
    "csize_embedder.mlp.0": ("adaln_single.emb.resolution_embedder.linear_1",),
    "csize_embedder.mlp.2": ("adaln_single.emb.resolution_embedder.linear_2",),
    "ar_embedder.mlp.0": ("adaln_single.emb.aspect_ratio_embedder.linear_1",),
    "ar_embedder.mlp.2": ("adaln_single.emb.aspect_ratio_embedder.linear_2",),
    "t_block.1": ("adaln_single.linear",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "blocks.#.scale_shift_table": ("transformer_blocks.#.scale_shift_table",),
    "blocks.#.attn.qkv": tuple(f"transformer_blocks.#.attn1.to_{x}" for x in "qkv"),
    "blocks.#.attn.proj": ("transformer_blocks.#.attn1.to_out.0",),
    "blocks.#.cross_attn.q_linear": ("transformer_blocks.#.attn2.to_q",),
    "blocks.#.cross_attn.kv_linear": tuple(f"transformer_blocks.#.attn2.to_{x}" for x in "kv"),
    "blocks.#.cross_attn.proj": ("transformer_blocks.#.attn2.to_out.0",),
    "blocks.#.mlp.fc1": ("transformer_blocks.#.ff.net.0.proj",),
    "blocks.#.mlp.fc2": ("transformer_blocks.#.ff.net.2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.scale_shift_table": ("scale_shift_table",),
}
# Layers that a checkpoint may lack, all of a group or none: our own one, and what only the 1024 px model knows.
OPTIONAL = (("ctx_fuse.",), ("csize_embedder.", "ar_embedder."))
# Buffers: the text of an empty prompt (random, never trained; two names) and a table that is computed here.
DROPPED = {"y_embedder.y_embedding", "caption_projection.y_embedding", "pos_embed"}
INDEXES = ("*.safetensors.index.json", "*.bin.index.json")  # of weights that lie in several files
FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt")  # in a folder, of which the first kind that is there is read
COMFY_PREFIX = "model.diffusion_model."

Layout = Literal["original", "comfy", "diffusers"]


def from_pixart(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict of a PixArt-α checkpoint, in any of its layouts -> state dict of `LazyDecoder`.

    The weights may lie under `state_dict` and under ComfyUI's prefix, beside other networks. `ctx_fuse` is there only
    if the checkpoint has it: see `LazyDecoder.ignore_context`.

    ValueError: not a PixArt-α state dict, or one with missing or unexpected keys.
    """
    state = state_dict.get("state_dict", state_dict)
    for prefix in (COMFY_PREFIX, "diffusion_model."):
        if inside := {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}:
            state = inside
    state = {key: value for key, value in state.items() if key not in DROPPED}
    if "adaln_single.linear.weight" in state:
        rows = _key_map(state, diffusers=True)
        return {ours: torch.cat([state[key] for key in theirs]) for ours, theirs in rows.items()}
    return {ours: state[ours] for ours in _key_map(state, diffusers=False)}


def to_pixart(state_dict: Mapping[str, Tensor], layout: Layout = "original") -> dict[str, Tensor]:
    """State dict of `LazyDecoder` -> that of a PixArt-α checkpoint; `ctx_fuse`, which stock PixArt lacks, stays.

    ValueError: another kind of state dict, or no such layout.
    """
    rows = _key_map(state_dict, diffusers=False)
    if layout == "original":
        return {ours: state_dict[ours] for ours in rows}
    if layout == "comfy":
        return {COMFY_PREFIX + ours: state_dict[ours] for ours in rows}
    if layout == "diffusers":
        parts = ((theirs, state_dict[ours].chunk(len(theirs))) for ours, theirs in rows.items())
        return {key: part.clone() for theirs, chunks in parts for key, part in zip(theirs, chunks, strict=True)}
    raise ValueError(f"no layout '{layout}': choose original, comfy or diffusers")


def read_sizes(state: Mapping[str, Tensor]) -> NetworkConfig:
    """Sizes of an encoder-decoder pair of PixArt-α's kind, from the shapes of its weights (the encoder's under
    `encoder.`); what shapes do not tell, heads and canvas, is as published for 512 and 1024 px."""
    width, channels, patch = state["x_embedder.proj.weight"].shape[:3]
    large = "csize_embedder.mlp.0.weight" in state
    return NetworkConfig(
        canvas=1024 if large else 512,
        cell=state["encoder.mask_down.weight"].shape[-1],
        channels=channels,
        patch=patch,
        width=width,
        heads=16,
        decoder_depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        encoder_depth=len({key.split(".")[2] for key in state if key.startswith("encoder.blocks.")}),
        mask_channels=state["encoder.mask_down.weight"].shape[0],
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] // width,
        text_width=state["y_embedder.y_proj.fc1.weight"].shape[1],
        learned_variance=state["final_layer.linear.weight"].shape[0] == 2 * channels * patch**2,
        micro_conditions=large,
    )


def load_pixart(decoder: LazyDecoder, path: str | Path) -> None:
    """Load PixArt-α's weights into a decoder; loaded with stock ones, it ignores its context.

    path: a file (safetensors, or what torch.save wrote) in the layout of the authors, ComfyUI or diffusers, its weights
        under whatever `from_pixart` takes off; or diffusers' folder of the transformer or of the whole pipeline, in one
        file or several
    ValueError: there is no such file, it is not PixArt-α, of other sizes than the decoder, or not of numbers; nothing
        is changed then.
    """
    try:
        tensors: dict[str, Any] = {}
        for file in pixart_files(Path(path)):
            tensors |= read_weights(file)
        state = from_pixart(tensors)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: its weights cannot be read ({error})") from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    own = decoder.state_dict()
    if stock := "ctx_fuse.weight" not in state:
        state |= {key: own[key] for key in own if key.startswith("ctx_fuse.")}
    found, expected = ({key: tuple(value.shape) for key, value in side.items()} for side in (state, own))
    if wrong := sorted(key for key in expected | found if expected.get(key) != found.get(key)):
        raise ValueError(
            f"{path} does not fit this decoder: {len(wrong)} parameters differ, first {wrong[0]}: "
            f"found {found.get(wrong[0])}, expected {expected.get(wrong[0])}"
        )
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{path}: {broken[0]} has values that are not numbers (NaN or infinite)")
    decoder.load_state_dict(state)
    if stock:
        decoder.ignore_context()


def pixart_files(path: Path) -> list[Path]:
    """The files of a checkpoint: itself, those that an index names, or those of diffusers' folder.

    Errors: ValueError when there is none, or more than one to choose from.
    """
    if path.is_dir():
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        for pattern in INDEXES + FILES:
            found = sorted(folder.glob(pattern))
            if len(found) > 1:
                raise ValueError(f"{folder} has {len(found)} files {pattern}: name one of them")
            if found:
                return pixart_files(found[0])
        raise ValueError(f"{folder}: there are no weights in it ({', '.join(FILES)})")
    check_file(path)
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
        return sorted(path.parent / Path(name).name for name in names)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no index of weights ({error})") from error


def read_weights(path: Path) -> dict[str, Any]:
    """What a file of weights holds; nothing in it is ever run. Errors: ValueError for another file."""
    check_file(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever pickle and zip make of other bytes
        raise ValueError(f"{path} is no file of weights ({shortened(str(error).splitlines()[0], 120)})") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds a {type(weights).__name__}, no weights by name")
    return weights


def _key_map(state: Mapping[str, Any], diffusers: bool) -> dict[str, tuple[str, ...]]:
    """LazyDecoder's parameters -> diffusers', for the model that `state` is, laid out as one of the two."""
    if ("adaln_single.linear.weight" if diffusers else "t_block.1.weight") not in state:
        raise ValueError(
            f"not a PixArt-α state dict: found {_some(state)}; expected t_block.1.weight (the original layout and "
            "ComfyUI's) or adaln_single.linear.weight (diffusers)"
        )
    numbers = (re.match(r"(?:transformer_)?blocks\.(\d+)\.", key) for key in state)
    rows = _rows(depth=1 + max((int(number[1]) for number in numbers if number), default=0))

    def names(ours: str) -> tuple[str, ...]:
        return rows[ours] if diffusers else (ours,)

    for group in OPTIONAL:
        members = [ours for ours in rows if ours.startswith(group)]
        if not any(name in state for ours in members for name in names(ours)):
            rows = {ours: theirs for ours, theirs in rows.items() if ours not in members}
    expected = {name for ours in rows for name in names(ours)}
    if missing := expected - state.keys():
        raise ValueError(f"the PixArt-α state dict lacks {_some(missing)}")
    if unexpected := state.keys() - expected:
        raise ValueError(f"the PixArt-α state dict has unexpected {_some(unexpected)}")
    return rows


def _rows(depth: int) -> dict[str, tuple[str, ...]]:
    """`LAYERS` written out: one row per parameter of a model of that depth."""
    rows = {}
    for layer, parts in LAYERS.items():
        for i in range(depth if "#" in layer else 1):
            for suffix in ("",) if layer.endswith("table") else (".weight", ".bias"):
                ours, *theirs = (name.replace("#", str(i)) + suffix for name in (layer, *parts))
                rows[ours] = tuple(theirs)
    return rows


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    more = f" and {len(names) - 3} more keys" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "no keys") + more
