"""Pictures of pictures: enlarged canvases in a grid, each with a caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN, LINE = 8, 15


def to_pil(image: Tensor, enlarge: int = 1) -> Image.Image:
    """[3, H, W] in 0…1 -> a picture, enlarged by whole pixels."""
    array = (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
    picture = Image.fromarray(array)
    return picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)


def thumbnail(image: Tensor, most: int) -> Tensor:
    """[3, H, W] averaged down until its longer side is at most so many pixels; a smaller one stays as it is."""
    scale = most / max(image.shape[-2:])
    size = [max(round(side * scale), 1) for side in image.shape[-2:]]
    return image if scale >= 1 else F.interpolate(image[None], size, mode="area")[0]


def from_array(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> [1, 3, H, W] in 0…1."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def grid(cells: Sequence[tuple[Tensor, str]], columns: int, enlarge: int = 2) -> Image.Image:
    """Pictures [3, H, W] with captions (of one or more lines) below, `columns` to a row."""
    pictures = [to_pil(image, enlarge) for image, _ in cells]
    lines = max(caption.count("\n") + 1 for _, caption in cells)
    width, height = pictures[0].width + MARGIN, pictures[0].height + MARGIN + LINE * lines
    sheet = Image.new("RGB", (columns * width + MARGIN, -(-len(cells) // columns) * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (picture, (_, caption)) in enumerate(zip(pictures, cells, strict=True)):
        x, y = MARGIN + i % columns * width, MARGIN + i // columns * height
        sheet.paste(picture, (x, y))
        draw.multiline_text((x, y + picture.height + 1), caption, fill="black", font=font, spacing=1)
    return sheet
