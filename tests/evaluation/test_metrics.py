"""FID and CLIPScore are what slow references find; other weights are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from public_folders import PictureFeatures, save_clip, save_inception, save_vae
from slow_metrics import frechet
from torch import Tensor

from lazydiff.evaluation.metrics import ClipSimilarity, Inception, distance_of_features

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # in which people have Inception


def pictures(count: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 24, 40), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_fid_is_that_of_scipy(tmp_path: Path) -> None:
    inception = Inception(save_inception(tmp_path / "inception.pt"), CPU)
    assert inception.num_features == 3
    real, made = inception(pictures(20, 1)), inception(pictures(17, 2) // 2)
    distance = distance_of_features(3)
    for features, kind in ((real, True), (made, False)):
        for part in features.split(5):
            distance.update(part, real=kind)
    # Sums in float64 and in float32's answer; torchmetrics takes eigenvalues where scipy takes a root.
    assert float(distance.compute()) == pytest.approx(frechet(real.numpy(), made.numpy()), rel=1e-4)


def test_a_fid_of_the_same_pictures_is_zero(tmp_path: Path) -> None:
    features = Inception(save_inception(tmp_path / "inception.pt"), CPU)(pictures(9, 1))
    distance = distance_of_features(3)
    for kind in (True, False):
        distance.update(features, real=kind)
    assert abs(float(distance.compute())) < 1e-6  # roots in float64


def test_inception_is_asked_for_its_features(tmp_path: Path) -> None:
    network = PictureFeatures()
    torch.jit.script(network).save(str(tmp_path / "named.pt"))
    torch.testing.assert_close(
        Inception(tmp_path / "named.pt", CPU)(pictures(2, 0)), network(pictures(2, 0), return_features=True)
    )
    plain = torch.nn.Sequential(Scaled(), torch.nn.Flatten())
    torch.jit.script(plain).save(str(tmp_path / "plain.pt"))
    assert Inception(tmp_path / "plain.pt", CPU).num_features == 12


class Scaled(torch.nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures.float(), [2, 2])


@pytest.mark.parametrize("content", [None, b"", b"no network", "scripted"])
def test_other_files_are_no_inception(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "inception.pt"
    if content == "scripted":
        torch.jit.script(torch.nn.Linear(3, 2)).save(str(path))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ValueError, match="inception.pt: (no TorchScript network|there is no such file)"):
        Inception(path, CPU)


def test_clip_score_is_the_cosine_of_its_embeddings(tmp_path: Path) -> None:
    similarity, picture, caption = ClipSimilarity(save_clip(tmp_path), CPU), pictures(1, 5)[0], "a red house"
    clip, processor = similarity.clip, similarity.processor
    text = processor.tokenizer(caption, return_tensors="pt")
    seen = processor.image_processor(picture, return_tensors="pt")
    words = clip.text_projection(clip.text_model(**text).pooler_output)
    looks = clip.visual_projection(clip.vision_model(**seen).pooler_output)
    expected = torch.nn.functional.cosine_similarity(looks, words).item()
    assert similarity(picture, caption) == pytest.approx(max(expected, 0), abs=1e-5)  # a product in other order
    with torch.no_grad():
        clip.text_projection.weight.neg_()
    assert similarity(picture, caption) == pytest.approx(max(-expected, 0), abs=1e-5)


def test_clip_reads_the_beginning_of_a_long_text(tmp_path: Path) -> None:
    similarity, picture = ClipSimilarity(save_clip(tmp_path), CPU), pictures(1, 5)[0]
    assert similarity(picture, "house " * 60) == similarity(picture, "house " * 100)


def test_other_folders_are_no_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clip is needed"):
        ClipSimilarity(save_vae(tmp_path / "vae"), CPU)
    with pytest.raises(ValueError, match="no such folder"):
        ClipSimilarity(tmp_path / "none", CPU)
    folder = save_clip(tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="image processor cannot be read"):
        ClipSimilarity(folder, CPU)
