"""The canvas editor with models of every kind: a stock transformer, a UNet, one whose latents are a video's frames."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from .in_process import Pack
from .test_canvas_editor import HOLE, request, waves
from .tiny_models import TinyVAE, prompt, tiny

pytestmark = pytest.mark.host


class Words:
    """A CLIP that has a conditioning for every text, and counts what it is asked."""

    def __init__(self, name: str):
        self.name, self.asked = name, 0

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[list[Any]]:
        self.asked += 1
        return prompt(self.name, 7, len(text))


@pytest.mark.parametrize("name", ["flux", "sd15", "sd3", "qwen-image"])
def test_variations_of_any_model_differ_and_leave_the_rest(pack: Pack, name: str) -> None:
    """And the second Enter on the same stroke makes nothing again but the samples."""
    files, editing = (pack.part(f"nodes.host.canvas_{part}") for part in ("files", "editing"))
    model = tiny(name)
    vae, clip = TinyVAE(model.model.latent_format.latent_channels), Words(name)
    before = waves(320, 320)
    opened = files.store_picture(before, kept=True)
    encoded: list[int] = []
    encode = vae.encode
    vae.encode = lambda image: encoded.append(len(image)) or encode(image)

    def enter(name: str, seed: int) -> list[np.ndarray]:
        value = json.dumps(request(opened.id, name, seed=seed, variations=2))
        done = pack.call_whole(
            "LazyCanvasEditor", canvas=value, model=model, clip=clip, vae=vae, steps=2, cfg=2.0, sampler="euler",
            scheduler="simple", denoise=1.0, sketch_denoise=0.7, negative="", grow=0, feather=0, blend="paste",
        )  # fmt: skip
        return [files.load_picture(each["id"]) for each in done.ui["variations"]]

    outside = np.ones(before.shape[:2], bool)
    outside[HOLE] = False
    made = enter("one", 1)
    first = len(encoded), clip.asked
    assert first == (1, 2)
    made += enter("two", 5)
    assert (len(encoded), clip.asked) == first
    for each in made:
        assert (each[outside] == before[outside]).all() and (each != before)[HOLE].any(-1).mean() > 0.5
    assert len({each.tobytes() for each in made}) == 4
    assert editing.CANVASES_AT_HAND.values  # and only there


def test_what_is_at_hand_is_let_go_in_the_order_of_its_use(pack: Pack) -> None:
    recent = pack.part("nodes.host.canvas_store").Recent(2)
    maker, other = Words("one"), Words("other")
    made: list[str] = []

    def get(key: str, by: Any = maker) -> None:
        recent.get(key, (by,), lambda: made.append(key))

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"]
    get("b", other)  # of another model
    assert made[-1] == "b" and len(recent.values) == 2
