"""Metrics by way of public networks whose weights the user has: features for FID, and CLIPScore. Nothing is downloaded.

FID is torchmetrics' (Heusel et al. 2017); the network is the one it is published with, Inception from 2015.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ..core.files import check_file
from ..model.pretrained import part_folder, read_part

SIDE = 299  # px: of the pictures that Inception is tried with; it scales others by itself


class Inception(nn.Module):
    """A TorchScript network that turns pictures, uint8 [B, 3, H, W], into features [B, F].

    path: such as inception-2015-12-05.pt, which takes pictures of any size and is asked for its features by name
    Errors: ValueError for a file that is none.
    """

    def __init__(self, path: Path, device: torch.device):
        super().__init__()
        check_file(path)
        try:
            self.script = torch.jit.load(str(path), map_location=device).eval()
            named = {argument.name for argument in self.script.forward.schema.arguments}
            self.options = {"return_features": True} if "return_features" in named else {}
            features = self(torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8, device=device))
            _, self.num_features = features.shape
        except Exception as error:  # whatever a file of another kind comes to
            raise ValueError(f"{path}: no TorchScript network that turns pictures into features ({error})") from error

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.script(pictures, **self.options)
        return features


def distance_of_features(size: int) -> FrechetInceptionDistance:
    """A FID that takes features [B, size] in place of pictures, so that those of real ones are found once for all
    models."""
    features = nn.Identity()
    features.num_features = size  # type: ignore[assignment]
    return FrechetInceptionDistance(features)


def clip_folder(folder: Path) -> Path:
    """Errors: ValueError for a folder that is not of a CLIP model."""
    return part_folder(folder, "clip", "model_type", "clip")


class ClipSimilarity:
    """CLIPScore: how well a picture fits a text, the cosine of their CLIP embeddings, at least 0.

    Source: Hessel et al. 2021, equation 1, without its weight of 2.5, as it is usually told and in the paper's Table 1.
    folder: of a CLIP model as transformers saves it, with its tokenizer and image processor
    Errors: ValueError for a folder that is none.
    """

    def __init__(self, folder: Path, device: torch.device):
        from transformers import CLIPModel, CLIPProcessor  # here, because it takes seconds

        own = clip_folder(folder)
        self.clip = read_part(CLIPModel, own).to(device).eval()
        try:
            self.processor = CLIPProcessor.from_pretrained(own, local_files_only=True)
        except Exception as error:  # whatever the library makes of missing or damaged files
            raise ValueError(f"{own}: its tokenizer or image processor cannot be read ({error})") from error

    @torch.no_grad()
    def __call__(self, picture: Tensor, text: str) -> float:
        """picture: uint8 [3, H, W]; of a text longer than CLIP reads, the beginning counts."""
        inputs = self.processor(
            text=[text], images=[picture.cpu()], return_tensors="pt", truncation=True,
            max_length=self.clip.config.text_config.max_position_embeddings,
        )  # fmt: skip
        both = self.clip(**inputs.to(self.clip.device))
        return max(float((both.image_embeds * both.text_embeds).sum()), 0.0)
