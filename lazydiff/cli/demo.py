"""The demonstration: chains of edits on one canvas, a storyboard of them, and time per step against mask area."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..core.files import whole_file
from ..core.masks import grow, to_grid
from ..core.pictures import from_array, grid, thumbnail
from ..model.config import Sampling
from ..model.lazydiffusion import LazyDiffusion
from ..pipeline.decode import Blend
from ..pipeline.edit import edit
from ..pipeline.encode import encode
from ..pipeline.sample import SampleSettings
from ..sampling.denoiser import lazy_denoiser
from ..world.backdrop import Backdrop
from ..world.colours import random_hue
from ..world.easel import Light
from ..world.items import Item, PlacedItem
from ..world.scene import WorldScene, draw_scene
from .files import save_figure, save_picture
from .pictures import box_mask

CANVAS = 512  # px per side of the canvas that the stories are told for
SHOWN = 288  # px per side of a canvas on the storyboard
SQUARES = 12  # whose time is plotted, at most


@dataclass(frozen=True)
class Stroke:
    """One edit of a story: what, where (x, y, width, height in pixels), and how it joins the canvas."""

    prompt: str
    box: tuple[int, int, int, int]
    blend: Blend = "poisson"

    def scaled(self, scale: float) -> Stroke:
        """On a canvas of another size."""
        x, y, width, height = self.box
        left, top, right, bottom = (round(scale * side) for side in (x, y, x + width, y + height))
        return replace(self, box=(left, top, right - left, bottom - top))


@dataclass(frozen=True)
class Story:
    """A canvas and the edits that follow one another on it."""

    name: str
    canvas: np.ndarray  # uint8 [H, W, 3]
    strokes: tuple[Stroke, ...]


def stories(side: int = CANVAS) -> tuple[Story, ...]:
    """One from a blank canvas of `side` pixels, and one that goes on with a scene that the model has never seen."""
    told = {
        "blank": (
            Stroke("blue sky", (0, 0, 512, 176), blend="paste"),
            Stroke("green grass", (0, 176, 512, 336), blend="paste"),
            Stroke("a red house", (24, 192, 168, 168)),
            Stroke("another one", (200, 192, 168, 168)),
            Stroke("a green tree", (352, 192, 160, 168)),
            Stroke("a yellow flower", (112, 352, 160, 160)),
        ),
        "scene": (
            Stroke("another one", (200, 280, 168, 184)),
            Stroke("another mug", (352, 24, 160, 184)),
            Stroke("a dotted blue donut", (352, 288, 160, 168)),
            Stroke("background", (24, 24, 176, 184)),
            Stroke("a red fish", (32, 32, 160, 160)),
            Stroke("a striped pink heart", (192, 24, 160, 184)),
        ),
    }
    canvases = {"blank": np.full((side, side, 3), 128, np.uint8), "scene": draw_scene(mugs_on_a_table(), side)}
    return tuple(
        Story(name, canvases[name], tuple(stroke.scaled(side / CANVAS) for stroke in strokes))
        for name, strokes in told.items()
    )


def mugs_on_a_table() -> WorldScene:
    mug = Item("mug", "orange", random_hue(np.random.default_rng(0), "orange"), "striped", seed=3)
    places = (0.22, 0.36), (0.54, 0.36), (0.22, 0.88)
    table = Backdrop("wood", ("light",), horizon=0.5, seed=4)
    return WorldScene(table, Light(side=-0.8, height=0.8), tuple(PlacedItem(mug, x, y, 0.28) for x, y in places))


def demo(model: LazyDiffusion, sampling: Sampling, folder: Path) -> None:
    """Write every state of every story, storyboard.png and time-per-step.png into the folder."""
    cells: list[tuple[Tensor, str]] = []
    everything = stories(model.config.network.canvas)
    steps = sampling.steps * sum(len(story.strokes) for story in everything)
    columns = max(len(story.strokes) for story in everything)
    with tqdm(total=steps, unit="step", desc="edits") as bar:
        for story in everything:
            before, after = tell(model, sampling, story, folder, bar)
            for row in (before, after):
                cells += [(thumbnail(picture, SHOWN), words) for picture, words in row]
                cells += [(torch.ones_like(cells[0][0]), "")] * (columns - len(row))
    save_figure(grid(cells, columns, enlargement(cells[0][0])), folder / "storyboard.png")
    plot_time(model, folder / "time-per-step.png")
    print(f"{folder / 'storyboard.png'}\n{folder / 'time-per-step.png'}")


def tell(
    model: LazyDiffusion, sampling: Sampling, story: Story, folder: Path, bar: tqdm
) -> tuple[list[tuple[Tensor, str]], list[tuple[Tensor, str]]]:
    """Play one story; returns the canvases with their masks outlined, and the results, each with its words."""
    canvas = from_array(story.canvas)
    enlarge = enlargement(canvas[0])
    save_picture(canvas[0], folder / f"{story.name}-0.png", enlarge)
    before, after = [], []
    for number, stroke in enumerate(story.strokes, 1):
        mask = box_mask(canvas, *stroke.box)
        tokens = int(to_grid(mask, model.config.network.token).sum())
        before.append((outlined(canvas, mask)[0], f"{number}. {stroke.prompt}"))
        start = time.perf_counter()
        settings = SampleSettings(sampling, callback=lambda done, total, x0: bar.update())
        canvas = edit(model, canvas, mask, stroke.prompt, settings=settings, blend=stroke.blend)
        milliseconds = 1000 * (time.perf_counter() - start)
        after.append((canvas[0], f"{tokens} of {model.config.network.grid**2} tokens, {milliseconds:.0f} ms"))
        save_picture(canvas[0], folder / f"{story.name}-{number}.png", enlarge)
    return before, after


def enlargement(image: Tensor) -> int:
    """How often a small canvas goes into the width at which it is shown; a large one is saved as it is."""
    return max(SHOWN // image.shape[-1], 1)


def outlined(image: Tensor, mask: Tensor) -> Tensor:
    """The canvas with a magenta line along the inner edge of the mask."""
    line = mask * (1 - grow(mask, -1))
    return torch.where(line > 0, torch.tensor([1.0, 0.0, 1.0])[:, None, None], image)


def plot_time(model: LazyDiffusion, path: Path, repeat: int = 5) -> None:
    """Median time of one guided decoder step of this model against the share of the canvas that is masked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size, device = model.config.network.canvas, next(model.parameters()).device
    shares, times = [], []
    grid_side = model.config.network.grid
    for tokens in range(1, grid_side + 1, -(-grid_side // SQUARES)):  # squares of 1, 4, 9, … tokens
        side = tokens * model.config.network.token
        mask = box_mask(torch.zeros(1, 3, size, size), 0, 0, side, side).to(device)
        context = encode(model, torch.full((1, 3, size, size), 0.5, device=device), mask)
        denoise = lazy_denoiser(model, context, ["another one"], guidance=2.0)
        z = torch.randn(1, context.hole.count, context.canvas.shape[-1], device=device)
        seconds = []
        with torch.no_grad():
            for _ in range(repeat):
                start = time.perf_counter()
                denoise(z, 0.5)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds.append(time.perf_counter() - start)
        shares.append(100 * context.hole.share)
        times.append(1000 * float(np.median(seconds)))
    figure, axes = plt.subplots(figsize=(6, 3.6))
    axes.plot(shares, times, "o-")
    axes.set(xlabel="mask, % of the canvas's tokens", ylabel="ms per step", ylim=(0, None))
    axes.set_title(f"Time per guided step follows the mask ({model.config.name}, {device.type})", fontsize=10)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
    plt.close(figure)
