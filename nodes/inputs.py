"""Schemas, and the inputs that several nodes have, made alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args

import comfy.samplers
from comfy_api.latest import io

from ..lazydiff.cache.kv_cache import KVSettings
from ..lazydiff.pipeline.decode import Blend
from ..lazydiff.pipeline.fit import Zoom
from .host.sampling import OWN
from .types import CATEGORY

REFERENCES = ["automatic", "start", "sink", "difference"]
MODELS = "SD 1.5, SDXL, PixArt, Flux, SD3, Qwen-Image … or one of this pack's."
ZOOMS = ["off", "around the hole"]
STOCK = " Stock models only."


def node_schema(node_id: str, name: str, *, aliases: Sequence[str], **given: Any) -> io.Schema:
    """A node of this pack's. aliases: other words to find it by, where the host can search for them"""
    if "search_aliases" in {field.name for field in fields(io.Schema)}:
        given["search_aliases"] = list(aliases)
    return io.Schema(node_id=node_id, display_name=name, category=CATEGORY, **given)


def seed_input(tooltip: str) -> Any:
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip
    )  # fmt: skip


def steps_input(tooltip: str, default: int, least: int = 1) -> Any:
    return io.Int.Input("steps", default=default, min=least, max=1000, tooltip=tooltip)


def cfg_input(tooltip: str, default: float) -> Any:
    return io.Float.Input("cfg", default=default, min=0.0, max=50.0, step=0.1, round=0.01, tooltip=tooltip)


def sampler_inputs(sampler: str, scheduler: str, tooltips: tuple[str, str], own: tuple[str, ...] = ()) -> list[Any]:
    """own: samplers that the host does not have"""
    host = comfy.samplers.KSampler
    return [
        io.Combo.Input("sampler", options=[*own, *host.SAMPLERS], default=sampler, tooltip=tooltips[0]),
        io.Combo.Input("scheduler", options=host.SCHEDULERS, default=scheduler, tooltip=tooltips[1]),
    ]


def own_sampler_inputs() -> list[Any]:
    """Those of a sampling of a context's hole."""
    return [
        steps_input("More steps, finer and slower.", default=20),
        cfg_input("How strongly the prompt is followed. 2 suits our model; 1, as for Flux, is twice as fast.", 1.0),
        *sampler_inputs(
            OWN, "simple", (
                "The model's own sampler (of a stock model: euler), or any of the host's.",
                "How the steps lie between noise and picture.",
            ), own=(OWN,),
        ),
    ]  # fmt: skip


def blend_input() -> Any:
    return io.Combo.Input(
        "blend", options=list(get_args(Blend)), default="poisson",
        tooltip="poisson: the new part's detail, without a seam. mixed: the stronger detail of new and old. paste: the "
        "new part as it is.",
    )  # fmt: skip


def denoise_input(tooltip: str, least: float = 0.0) -> Any:
    return io.Float.Input("denoise", default=1.0, min=least, max=1.0, step=0.01, tooltip=tooltip)


def edge_inputs() -> list[Any]:
    """What becomes of a hole's edge."""
    return [
        io.Int.Input("grow", default=0, min=-64, max=64, tooltip="Widen or narrow the hole, in pixels."),
        io.Int.Input(
            "feather", default=0, min=0, max=64,
            tooltip="Soften the hole's edge outwards over so many pixels, in the latent's noise mask.",
        ),
    ]  # fmt: skip


def stock_inputs() -> list[Any]:
    """What only stock transformers have a use for, in the order of `kv_settings`; optional, so that older workflows
    stay whole, and folded away until asked for."""
    inputs: list[Any] = [
        io.Int.Input(
            "anchors", default=0, min=0, max=1000, optional=True,
            tooltip="Steps that compute the whole canvas, evenly spaced, instead of what is recorded. 0: as mode says."
            + STOCK,
        ),
        io.Int.Input(
            "ring", default=1, min=0, max=16, optional=True,
            tooltip="Tokens around the hole that are computed with it: slower, closer to a full pass." + STOCK,
        ),
        io.Boolean.Input(
            "keep_text", default=False, optional=True,
            tooltip="Keep the prompt's tokens as well: faster; what it costs in quality was not measured. "
            "For models whose prompt goes through the same blocks (Flux, SD3, Qwen-Image)." + STOCK,
        ),
        io.Combo.Input(
            "cache_precision", options=["model", "fp8"], default="model", optional=True,
            tooltip="Of what is kept. fp8 needs half the memory of bf16." + STOCK,
        ),
        io.Combo.Input(
            "cache_place", options=["device", "host"], default="device", optional=True,
            tooltip="Where it is kept during a sampling: on the GPU, or in main memory, which is slower." + STOCK,
        ),
        io.Int.Input(
            "cache_limit", default=0, min=0, max=1_000_000, optional=True,
            tooltip="Most memory for it in MB; 0: no limit. What is oldest is forgotten first." + STOCK,
        ),
        io.Boolean.Input(
            "reuse_anchors", default=False, optional=True,
            tooltip="Let later samplings go on from the anchors that earlier ones on this context have left: the next "
            "variation is faster, but its picture then depends on what ran before it. Recordings need no switch."
            + STOCK,
        ),
    ]  # fmt: skip
    return advanced(inputs)


def recording_inputs() -> list[Any]:
    """More of the same, which came later."""
    inputs: list[Any] = [
        io.Combo.Input(
            "mode", options=["recorded", "anchors"], default="recorded", optional=True,
            tooltip="recorded: what the hole looks at is recorded before the first step, and no step computes the "
            "whole canvas. anchors: some steps do, as many as the model needs: slower, and closer to a full pass."
            + STOCK,
        ),
        io.Int.Input(
            "levels", default=0, min=0, max=64, optional=True,
            tooltip="Noise levels to record: more, slower and closer to a full pass. 0: 1, from 12 steps on 2." + STOCK,
        ),
    ]  # fmt: skip
    return advanced(inputs)


def advanced(inputs: list[Any]) -> list[Any]:
    """The same inputs, folded away until asked for."""
    for each in inputs:
        each.extra_dict["advanced"] = True
    return inputs


def kv_settings(given: dict[str, Any]) -> KVSettings:
    """The values of `stock_inputs` and `recording_inputs`; what is not given has its default."""
    inputs = {
        "anchors": "anchors", "ring": "ring", "text": "keep_text", "precision": "cache_precision",
        "place": "cache_place", "limit": "cache_limit", "reuse": "reuse_anchors", "mode": "mode", "levels": "levels",
    }  # fmt: skip
    return KVSettings(**{field: given[name] for field, name in inputs.items() if name in given})


def zoom_inputs() -> list[Any]:
    """How a large picture is looked at by a stock model, in the order of `zoom_settings`."""
    return [
        io.Combo.Input(
            "zoom", options=ZOOMS, default=ZOOMS[0], optional=True,
            tooltip="around the hole: look at the mask and its surroundings alone, scaled to the size that the model "
            "likes. For small holes and large pictures; time and memory follow the hole." + STOCK,
        ),
        io.Float.Input(
            "zoom_surroundings", default=3.0, min=1.0, max=20.0, step=0.1, round=0.01, optional=True,
            tooltip="How much is looked at: times the longer side of the mask's box.",
        ),
        io.Float.Input(
            "zoom_megapixels", default=1.0, min=0.05, max=16.0, step=0.05, round=0.01, optional=True,
            tooltip="The size that the model likes, 1 = 1024×1024 px.",
        ),
    ]  # fmt: skip


def zoom_settings(given: dict[str, Any]) -> Zoom | None:
    """The values of `zoom_inputs`, which it takes out of what is given."""
    on, *values = (given.pop(name, None) for name in ("zoom", "zoom_surroundings", "zoom_megapixels"))
    if on in (None, ZOOMS[0]):
        return None
    return Zoom(**{field: value for field, value in zip(Zoom._fields, values, strict=True) if value is not None})


def colour_input() -> Any:
    return io.Boolean.Input(
        "match_colours", default=False, optional=True,
        tooltip="Give what is new the tones and contrast of the picture around the hole. For models that shift the "
        "colours of everything.",
    )  # fmt: skip


def search_inputs() -> list[Any]:
    """How the words of a prompt are told apart."""
    thresholds = (
        ("object_threshold", 0.9, "Words this similar to the object's are the object too."),
        ("background_threshold", 0.6, "Words no more similar than this are background, and taken away."),
        ("mask_threshold", 0.2, "Where the heat map is above this is masked: lower, larger."),
    )
    return [
        io.String.Input(
            "words", default="",
            tooltip="Words of the prompt to point at, separated by commas. Empty: the model finds out which of them "
            "are the object.",
        ),
        io.Combo.Input(
            "reference", options=REFERENCES, default="automatic",
            tooltip="What the object's words are recognised by: the start token (CLIP), the token that draws attention "
            "anyway (T5), or where guidance changes most.",
        ),
        *(
            io.Float.Input(name, default=default, min=-1.0, max=1.0, step=0.01, tooltip=tooltip)
            for name, default, tooltip in thresholds
        ),
    ]  # fmt: skip
