"""UNets computed in tiles, against the same networks on the whole map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from lazydiff.cache.kv_cache import AnchorSession, CacheReader, CacheWriter, KVCache, KVSettings
from lazydiff.cache.unet_call import TiledUNet
from lazydiff.cache.unet_parts import UNetParts

PROMPTS = ["conditional", "unconditional"]
EXACT = 1e-5  # relative: sums of float32 in another order


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    """Three resolutions, transformers at the first two, nine input channels."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "sample_size": 16, "in_channels": 9, "out_channels": 4, "cross_attention_dim": 12, "norm_num_groups": 4,
        "block_out_channels": (8, 16, 16), "attention_head_dim": 2, "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**sizes | changes).eval()


def holes(height: int, width: int, *boxes: tuple[int, int, int, int]) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


class Calls:
    """A UNet, tiles of it, and what its calls are given."""

    def __init__(self, hole: Tensor, smallest: int, rows: int = 1, settings: KVSettings | None = None, **tiled: Any):
        self.net, self.hole = tiny_unet(), hole
        self.unet = TiledUNet(UNetParts.of(self.net), hole, hole, smallest, **tiled)
        self.cache = KVCache(settings or KVSettings(anchors=1))
        self.session: AnchorSession = self.cache.session([1.0, 0.5, 0.0])
        self.x = torch.randn(rows * len(PROMPTS), 9, *hole.shape)
        self.text = torch.randn(len(self.x), 5, 12)

    @torch.no_grad()
    def __call__(self, x: Tensor, lazy: bool) -> Tensor:
        action = self.session.call(0.5 if lazy else 1.0, PROMPTS)
        assert isinstance(action, CacheReader if lazy else CacheWriter)
        with self.unet.calling(action):
            answer = self.dense(x)
        action.end()
        return answer

    @torch.no_grad()
    def dense(self, x: Tensor) -> Tensor:
        answer: Tensor = self.net(x, 500, self.text[: len(x)]).sample
        return answer


def off(lazy: Tensor, dense: Tensor, hole: Tensor) -> float:
    """Largest difference in the hole, relative to the answer."""
    return float((lazy - dense)[..., hole].abs().max() / dense.abs().max())


RECTANGLE = holes(16, 24, (5, 3, 10, 9))
SPECKS = holes(32, 32, (0, 0, 2, 2), (30, 29, 32, 32), (13, 14, 15, 16), (3, 25, 4, 27), (24, 4, 26, 5))


@pytest.mark.parametrize("smallest", [1, 8, 16])
@pytest.mark.parametrize("hole", [RECTANGLE, SPECKS], ids=["rectangle", "specks"])
def test_lazy_equals_dense_with_what_the_same_step_has_left(hole: Tensor, smallest: int) -> None:
    calls = Calls(hole, smallest)
    assert 0 < calls.unet.share < 1
    dense = calls.dense(calls.x)
    assert torch.equal(calls(calls.x, lazy=False), dense)
    assert off(calls(calls.x, lazy=True), dense, hole) < EXACT


def test_several_tiles_or_one_by_what_is_less_work() -> None:
    assert Calls(SPECKS, 16).unet.levels[0].count > 1
    assert Calls(RECTANGLE, 8).unet.levels[0].count == 1


def test_odd_sizes_reach_beyond_the_border() -> None:
    for smallest in (1, 8):
        hole = holes(19, 21, (14, 15, 19, 21))
        calls = Calls(hole, smallest)
        calls.net.config.sample_size = 16
        dense = calls.dense(calls.x)
        calls(calls.x, lazy=False)
        assert off(calls(calls.x, lazy=True), dense, hole) < EXACT
        assert calls.unet.levels[0].outside is not None


def test_a_batch_of_canvases_and_prompts() -> None:
    calls = Calls(RECTANGLE, 8, rows=3)
    dense = calls.dense(calls.x)
    calls(calls.x, lazy=False)
    assert off(calls(calls.x, lazy=True), dense, RECTANGLE) < EXACT


def test_without_the_record_the_answer_is_another_one() -> None:
    """The network does look beyond the tiles; what lies there is what the record is of."""
    calls = Calls(RECTANGLE, 8)
    calls(torch.randn_like(calls.x), lazy=False)
    assert off(calls(calls.x, lazy=True), calls.dense(calls.x), RECTANGLE) > 1e-3


def test_corrected_statistics_follow_a_brighter_hole() -> None:
    """Of an edit that shifts the hole alone, group norms know what it has changed of the whole map."""
    errors = {}
    for corrected in (False, True):
        calls = Calls(RECTANGLE, 8, corrected=corrected)
        calls(calls.x, lazy=False)
        edited = calls.x + 3 * RECTANGLE
        errors[corrected] = off(calls(edited, lazy=True), calls.dense(edited), RECTANGLE)
    assert errors[True] < errors[False]


@pytest.mark.parametrize("settings", [KVSettings(anchors=1), KVSettings(anchors=1, precision="fp8")])
def test_memory_is_what_the_formula_says(settings: KVSettings) -> None:
    for hole in (RECTANGLE, SPECKS):
        for smallest in (1, 8):
            calls = Calls(hole, smallest, settings=settings)
            calls(calls.x, lazy=False)
            formula = calls.unet.bytes(len(calls.x), 4, 1 if settings.precision == "fp8" else 4)
            assert calls.cache.bytes == formula


def test_nothing_is_left_of_a_call() -> None:
    calls = Calls(RECTANGLE, 8)

    def of_modules() -> list[Any]:
        return [(vars(m).get("forward"), getattr(m, "padding", None)) for m in calls.net.modules()]

    before = of_modules()
    calls(calls.x, lazy=False)
    calls(calls.x, lazy=True)
    with pytest.raises(RuntimeError, match="channels"):
        calls(calls.x[:, :4], lazy=True)
    assert of_modules() == before
