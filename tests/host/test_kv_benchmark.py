"""The benchmark of KV contexts, on networks with next to no width; what it measures is not asserted here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import kv_context
from benchmarks.comfyui import load_pack
from benchmarks.harness import Harness
from benchmarks.kv_shapes import FLUX, PIXART, SD35, Shape, macs

from .in_process import Pack

pytestmark = pytest.mark.host

GRID = 24  # tokens per side; PixArt's positions need some


def tiny(shape: Shape, **sizes: object) -> Shape:
    return replace(shape, reduced=sizes, quick=sizes, text=9, text_width=24, pooled=12 if shape.pooled else 0)


SHAPES = [
    tiny(PIXART, hidden_size=48, num_heads=2, depth=2, caption_channels=24),
    tiny(
        FLUX, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=[4, 6, 6], context_in_dim=24,
        vec_in_dim=12,
    ),
    tiny(
        SD35, depth=2, num_blocks=3, x_block_self_attn_layers=[0, 1], adm_in_channels=12, num_patches=GRID**2,
        pos_embed_max_size=GRID,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
    ),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
@torch.inference_mode()
def test_the_arithmetic_is_what_the_network_does(shape, pack: Pack, tmp_path):
    """Of a dense and of a replayed call, by torch's own count of what is multiplied."""
    sizes = {**shape.sizes, **shape.reduced}
    bench = kv_context.Bench(pack.part("nodes.host.kv_sampling"), shape, sizes, GRID, Harness(tmp_path))
    text = shape.text if shape.joint else 0
    lazy = bench.lazy(bench.context(anchors=1, ring=0, text=True))
    bench.call(lazy)
    hole = int(kv_context.hole_mask(GRID, kv_context.PERCENT).sum())
    for model, image, words in ((bench.model, GRID**2, text), (lazy, hole, min(text, 1))):
        with FlopCounterMode(display=False) as counter:
            bench.call(model)
        counts = {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}
        in_blocks = {name: count for name, count in counts.items() if "blocks." in name}
        whole = sum(count for name, count in in_blocks.items() if name.rpartition("blocks.")[2].isdigit())
        modulation = sum(count for name, count in in_blocks.items() if name.endswith(("_mod", "modulation")))
        assert whole - modulation == macs(shape, sizes, GRID**2, image, words)


@torch.inference_mode()
def test_whole_samplings_are_measured(pack: Pack, tmp_path, monkeypatch):
    flux, kv = replace(SHAPES[1], sampled=(5, 2)), pack.part("nodes.host.kv_sampling")
    bench = kv_context.Bench(kv, flux, {**flux.sizes, **flux.reduced}, GRID, Harness(tmp_path))
    rows = bench.samplings()
    assert [(row.steps, row.mode, row.text_kept) for row in rows] == [
        (5, "recorded", False), (2, "recorded", False), (5, "recorded", True), (5, "anchors", False),
    ]  # fmt: skip
    assert all(row.next_ratio > 0 for row in rows)


@torch.inference_mode()
def test_everything_is_measured_and_written(pack: Pack, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kv_context, "load_pack", lambda cpu: pack.module)
    monkeypatch.setattr(kv_context, "SHAPES", SHAPES)
    monkeypatch.setattr(kv_context, "GRID", GRID)
    kv_context.main(["--output", str(tmp_path), "--repeat", "1", "--quick"])
    report = json.loads((tmp_path / "kv_context.json").read_text("utf-8"))

    assert len(report["steps"]) == 2 + 4 + 4 and all(step["limit"] > 1 for step in report["steps"])
    # Put together or measured as wholes, ratios are of the same two times.
    for row in report["samplings"]:
        assert row["first_ratio"] == pytest.approx(row["dense_s"] / row["first_s"])
        assert row["next_ratio"] == pytest.approx(row["dense_s"] / row["next_s"])
    figures = report["figures"]
    names = {"pixart_step_ratio_at_10_percent", "flux_step_ratio_at_10_percent", "flux_step_ratio_text_cached"}
    names |= {f"end_to_end_{steps}_steps" for steps in (20, 8, 4)}
    names |= {"pixart_end_to_end_20_steps", "next_variation_20_steps", "cache_over_formula"}
    assert names == figures.keys()
    assert min(figures.values()) > 0
    # Bytes, not times: what is kept is no more and no less than what the formula says.
    assert figures["cache_over_formula"] == pytest.approx(1, abs=0.05)
    assert all(row["most_mb"] <= row["limit_mb"] for row in report["limits"])

    assert (tmp_path / "kv_context.png").stat().st_size > 1000
    tables = (tmp_path / "kv_context.md").read_text("utf-8")
    assert tables.strip() in capsys.readouterr().out and "width 48 of 1152, 2 of 28 blocks" in tables


def test_without_a_host_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no ComfyUI at .* set COMFYUI_PATH"):
        load_pack(cpu=True)
