"""Masks by the published settings: a model of whole pictures is trained, and what is measured is what it is called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from road import as_in_a_process_of_its_own

from benchmarks import portraits, published_masks
from benchmarks.portraits import SIZE, random_portrait
from benchmarks.published_masks import GUIDANCE, fisedit, guided, instdiffedit, portrait_questions
from lazydiff.auto_mask.attention_mask import AttentionMaps
from lazydiff.auto_mask.noisy_picture import NoisyPicture
from lazydiff.model.checkpoint import load_checkpoint
from lazydiff.model.lazydiffusion import LazyDiffusion


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three steps."""
    folder = tmp_path_factory.mktemp("portraits")
    with as_in_a_process_of_its_own(), pytest.MonkeyPatch.context() as patch:
        network = replace(portraits.MODEL.network, width=24, heads=2, decoder_depth=2, channels=8, text_width=24)
        patch.setattr(portraits, "MODEL", replace(portraits.MODEL, network=network))
        portraits.main(["--output", str(folder), "--pictures", "32", "--steps", "3"])
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def model(weights: Path) -> LazyDiffusion:
    return load_checkpoint(weights)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_masks, "STEPS", 4)
    monkeypatch.setattr(published_masks, "COMPARED", 2)
    monkeypatch.setattr(published_masks, "DIFFEDIT_SEEDS", (0, 1))


def test_a_thing_covers_a_fifth_and_the_caption_tells_all() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        portrait = random_portrait(rng)
        other = portrait.with_another_thing(rng)
        assert portrait.silhouette.mean() >= 0.2 and portrait.pixels.shape == (SIZE, SIZE, 3)
        item, words = portrait.thing.item, portrait.caption.split()
        assert item.kind in words and item.name in words and portrait.scene.backdrop.tints[0] in words
        assert other.thing.item.kind != item.kind and other.thing.item.name != item.name
        assert other.scene.backdrop == portrait.scene.backdrop
        assert other.caption.partition(" before ")[2] == portrait.caption.partition(" before ")[2]


def test_a_watched_estimate_is_the_guided_one(model: LazyDiffusion) -> None:
    [asked] = portrait_questions(3, 1)
    noisy, caption = NoisyPicture(model, asked.portrait.image, [0, 1], 0.5), asked.portrait.caption
    maps = AttentionMaps([[0]], (SIZE // 4, SIZE // 4), "sink")
    seen = guided(model, noisy, caption, maps)(noisy.start, 0.5)
    assert torch.allclose(seen, noisy.denoiser(caption, GUIDANCE)(noisy.start, 0.5), atol=1e-5)
    assert not torch.allclose(seen, noisy.denoiser(caption)(noisy.start, 0.5), atol=1e-5)
    assert maps.attention.value is not None


def test_what_is_outside_the_mask_is_the_picture_again_after_each_step(
    model: LazyDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mask of nothing, every step begins with the picture's own tokens."""
    [asked] = portrait_questions(3, 1)
    half = published_masks.HALF
    noisy = NoisyPicture(model, asked.portrait.image, published_masks.SEEDS, half)
    picture = noisy.context.canvas
    noise = (noisy.start - (1 - half) * picture) / half
    seen: list[tuple[torch.Tensor, float]] = []

    def watching(*given: Any) -> object:
        denoise = guided(*given)
        return lambda z, sigma: [seen.append((z, sigma)), denoise(z, sigma)][1]

    monkeypatch.setattr(published_masks, "guided", watching)
    monkeypatch.setattr(published_masks.AttentionMaps, "mask", lambda self: torch.zeros(self.size))
    heats = instdiffedit(model, asked)
    assert [sigma for _, sigma in seen] == [half, half / 2]
    assert all(torch.allclose(z, (1 - sigma) * picture + sigma * noise, atol=1e-5) for z, sigma in seen)
    assert all(heat.shape == (1, 1, SIZE, SIZE) for heat in heats)


def test_equal_captions_generate_equal_pictures(model: LazyDiffusion) -> None:
    [asked] = portrait_questions(3, 1)
    made = fisedit(model, asked._replace(other=asked.portrait), 0)
    assert not made.mask.any() and not made.change.any() and torch.equal(*made.pictures)


def test_a_change_is_found_by_its_share_inside_the_mask() -> None:
    mask, change = torch.zeros(2, 1, 1, SIZE, SIZE)
    mask[..., : SIZE // 4] = 1
    change[..., :2], change[..., -1] = 3, 2  # 6 of 8 inside
    found = published_masks.fisedit_figures([published_masks.Generated(mask, change, ())])
    assert found == {"fisedit_change_inside": 75, "fisedit_share_of_canvas": 25}


def test_figures_are_written(weights: Path, tmp_path: Path) -> None:
    published_masks.main(["--output", str(tmp_path), "--weights", str(weights), "--scenes", "2", "--quick"])
    report = json.loads((tmp_path / "published-masks.json").read_text("utf-8"))
    figures, asked = report["figures"], portrait_questions(published_masks.TEST, 2)
    covered = 100 * np.mean([one.portrait.silhouette.mean() for one in asked])
    assert figures["whole_canvas_iou"] == pytest.approx(covered, abs=0.01) and report["scenes"] == 2
    assert figures["instdiffedit_minus_noun_cases"] == 2
    assert figures["instdiffedit_minus_noun"] == pytest.approx(
        figures["instdiffedit_tuned_iou"] - figures["noun_tuned_iou"], abs=0.02
    )
    assert (tmp_path / "published-masks.png").exists()
