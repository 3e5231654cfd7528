"""Masks by the published settings: a model of whole pictures is trained, and what is measured is what it is called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from road import as_in_a_process_of_its_own

from benchmarks import portraits, published_masks
from benchmarks.portraits import SIZE, random_portrait
from benchmarks.published_masks import Guided, fisedit, instdiffedit, portrait_questions
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


def test_guidance_1_is_the_prompts_estimate_and_0_the_empty_ones(model: LazyDiffusion) -> None:
    [asked] = portrait_questions(3, 1)
    way = Guided(model, asked.portrait.image, [0, 1], 0.5)
    z, caption = way.noisy.start, asked.portrait.caption
    named, unnamed = (way.denoiser(prompt, 1)(z, 0.5) for prompt in (caption, ""))
    assert torch.equal(named, way.noisy.denoiser(caption)(z, 0.5)) and not torch.equal(named, unnamed)
    assert torch.allclose(way.denoiser(caption, 0)(z, 0.5), unnamed)
    assert torch.allclose(way.denoiser(caption, 3)(z, 0.5), unnamed + 3 * (named - unnamed), atol=1e-5)
    assert torch.allclose(way.known(0.5), z, atol=1e-6) and torch.equal(way.known(0), way.canvas.expand_as(z))


def test_what_is_outside_the_mask_is_the_picture_again_after_each_step(
    model: LazyDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mask of nothing, every step begins with the picture's own tokens."""
    [asked] = portrait_questions(3, 1)
    seen: list[tuple[torch.Tensor, float]] = []
    before = Guided.denoiser

    def watching(self: Guided, *given: object) -> object:
        denoise = before(self, *given)  # type: ignore[arg-type]
        return lambda z, sigma: [seen.append((z - self.known(sigma), sigma)), denoise(z, sigma)][1]

    monkeypatch.setattr(Guided, "denoiser", watching)
    monkeypatch.setattr(published_masks.AttentionMaps, "mask", lambda self: torch.zeros(self.size))
    heats = instdiffedit(model, asked)
    assert len(seen) == 2 and seen[0][1] == published_masks.HALF
    assert all(difference.abs().max() < 1e-5 for difference, _ in seen)
    assert all(heat.shape == (1, 1, SIZE, SIZE) for heat in heats)


def test_equal_captions_generate_equal_pictures(model: LazyDiffusion) -> None:
    [asked] = portrait_questions(3, 1)
    made = fisedit(model, asked._replace(other=asked.portrait), 0)
    assert not made.mask.any() and not made.change.any() and torch.equal(*made.pictures)


def test_a_change_is_found_by_its_share_inside_the_mask(model: LazyDiffusion) -> None:
    mask, change = torch.zeros(2, 1, 1, SIZE, SIZE)
    mask[..., : SIZE // 4] = 1
    change[..., :2], change[..., -1] = 3, 2  # 6 of 8 inside
    asked = portrait_questions(3, 2)
    measured = published_masks.measure(model, asked, published_masks.found_heats(model, asked))
    found = published_masks.figures(measured, [published_masks.Generated(mask, change, ())])
    assert (found["fisedit_change_inside"], found["fisedit_share_of_canvas"]) == (75, 25)


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
