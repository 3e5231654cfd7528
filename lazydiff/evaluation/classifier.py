"""Which shape stands at a place: a small convolutional network, trained on clean renders in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..scenes import BOX, CANVAS, SHAPES, Placed, object_mask, random_scene, random_thing, render
from .questions import stream

NOTHING = "nothing"
LABELS = (*SHAPES, NOTHING)
MARGIN = 4  # px around an object's box
SIDE = BOX + 2 * MARGIN
BATCH = 64


def window(image: np.ndarray, placed: Placed) -> np.ndarray:
    """A place with its surroundings, uint8 [32, 32, 3]; beyond the canvas its edge is repeated."""
    rows, columns = (np.arange(c - MARGIN, c - MARGIN + SIDE).clip(0, CANVAS - 1) for c in (placed.y, placed.x))
    return image[rows[:, None], columns]


def examples(rng: np.random.Generator, scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows uint8 [K, 32, 32, 3] and labels int64 [K]: all objects of random scenes, every one of another kind, and
    for each scene a place left empty and one filled with what is no object."""
    windows, labels = [], []
    for _ in range(scenes):
        scene = random_scene(rng, siblings=1)
        if rng.random() < 0.2:
            scene = replace(scene, background=replace(scene.background, painted="none"))
        scene = replace(scene, things=tuple(replace(p, thing=random_thing(rng)) for p in scene.things))
        image = render(scene)
        for placed in scene.things:
            windows.append(window(image, placed))
            labels.append(LABELS.index(placed.thing.shape))
        i = int(rng.integers(len(scene.things)))
        for empty in (render(scene, without=i), junk(rng, image, object_mask(rng, scene, scene.things[i]))):
            windows.append(window(empty, scene.things[i]))
            labels.append(LABELS.index(NOTHING))
    return np.stack(windows), np.array(labels)


def junk(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with its hole full of noise of some grain and contrast around some colour."""
    cell = int(rng.choice((1, 2, 4, 8)))
    grain = rng.uniform(-1, 1, (CANVAS // cell, CANVAS // cell, 3)).repeat(cell, 0).repeat(cell, 1)
    noise = rng.uniform(0, 255, 3) + rng.choice((0, 32, 128)) * grain
    return np.where(mask[..., None], noise.clip(0, 255), image).astype(np.uint8)


def to_tensor(windows: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(windows).float() / 127.5 - 1, "b h w c -> b c h w")


def spoil(windows: Tensor, generator: torch.Generator) -> Tensor:
    """Blur and noise as generated pictures have them, of random strength for each window."""
    blur, noise = torch.rand(2, len(windows), 1, 1, 1, generator=generator)
    windows = windows.lerp(F.avg_pool2d(windows, 3, stride=1, padding=1, count_include_pad=False), blur)
    return windows + 0.15 * noise * torch.randn(windows.shape, generator=generator)


@cache
def train_classifier(seed: int, scenes: int, epochs: int = 6) -> nn.Module:
    """A network from windows [B, 3, 32, 32] in -1…1 to scores [B, 11] of LABELS, the same for the same seed; kept."""
    rng = stream(seed, 0)
    windows, labels = examples(rng, scenes)

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * (SIDE // 8) ** 2, len(LABELS)),
        )  # fmt: skip

    return fit_classifier(network, windows, labels, epochs, rng)


def fit_classifier(
    make: Callable[[], nn.Module], windows: np.ndarray, labels: np.ndarray, epochs: int, rng: np.random.Generator
) -> nn.Module:
    """A network that was made and then trained to tell windows uint8 [K, h, w, 3] by their labels [K]."""
    targets = torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(int(rng.integers(2**31)))
        network = make()
        steps = epochs * (len(labels) // BATCH)
        optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(labels), generator=generator)[: steps // epochs * BATCH].split(BATCH):
                scores = network(spoil(to_tensor(windows[rows.numpy()]), generator))
                optimiser.zero_grad()
                F.cross_entropy(scores, targets[rows]).backward()
                optimiser.step()
                schedule.step()
    return network.eval().requires_grad_(False)
