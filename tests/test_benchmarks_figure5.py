"""The benchmark of whole edits: its arithmetic, and that it runs; what it measures is not asserted here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import figure5, stages
from benchmarks.stages import Networks, NineChannels, Part, Setting
from lazydiff.model.config import PIXART_1024
from lazydiff.model.decoder import LazyDecoder

SHAPE = dict(width=48, heads=4, decoder_depth=7, encoder_depth=5, text_width=32, text_length=5)
TINY = replace(PIXART_1024, canvas=128, **SHAPE)
SMALLER = replace(TINY, canvas=64, micro_conditions=False)
CPU = Setting("cpu", torch.float32, 1, 1, 2, vae_size=64, vae_channels=(8, 8, 16, 16), vae_groups=4)


WHOLE = replace(CPU, rows=2, decoder_layers=7, encoder_layers=5, vae_size=None)  # as on a GPU


@pytest.mark.parametrize("setting", [CPU, WHOLE])
def test_a_step_is_two_calls_of_all_layers(setting, monkeypatch):
    """Calls are replaced by what they compute, in rows: layers, and what a call does only once."""
    monkeypatch.setattr(stages, "step", lambda decoder, n, setting: (decoder.config.decoder_depth, setting.rows))
    parts = Networks(TINY, setting).step(10)
    assert sum(times * rows * layers for (layers, rows), times in parts) == pytest.approx(2 * TINY.decoder_depth)
    assert sum(times * rows for (_, rows), times in parts) == pytest.approx(2)


@pytest.mark.parametrize("setting", [CPU, WHOLE])
def test_a_context_is_one_layer_for_the_hole_and_all_others_for_the_canvas(setting, monkeypatch):
    monkeypatch.setattr(Networks, "_context_call", lambda self, layers, n: (layers, n))
    parts = Networks(TINY, setting).context(10)
    assert sum(times * (layers - 1) for (layers, _), times in parts) == pytest.approx(TINY.encoder_depth - 1)
    assert sum(times for (_, n), times in parts if n == 10) == 1 and sum(times for _, times in parts) == 1


def test_a_vae_is_scaled_by_its_work():
    vae = stages.Autoencoder(CPU)
    (decode,), (small,) = vae.full(256)["decode"], vae.full(64)["decode"]
    assert small.times == 1 and 16 < decode.times < 40  # its attention grows faster than the picture
    (lazy,) = vae.lazy(256, 1)["lazy decode"]
    assert 0 < lazy.times < decode.times
    assert vae.lazy(256, 50)["lazy encode"] == vae.full(256)["open encode"]


def test_the_baseline_reads_nine_channels_and_no_context():
    decoder = NineChannels(TINY)
    assert decoder.x_embedder.proj.weight.shape[1] == 9 and not list(decoder.ctx_fuse.parameters())
    assert stages.step(decoder, 64, CPU)().shape == stages.step(LazyDecoder(TINY), 64, CPU)().shape


@pytest.mark.parametrize("setting", [CPU, WHOLE])
def test_edits_are_the_sum_of_their_stages(setting):
    vae, calls = stages.Autoencoder(setting), []
    (row,) = figure5.measure([TINY], SMALLER, (10,), (3, 1), setting, vae, repeat=1)
    added = row.edits["next edit"][3] - row.edits["next edit"][1]
    assert added == pytest.approx(2 * row.stages["lazy step"]) and row.tokens == 6

    if setting is WHOLE:  # and can be run as one
        stage = {name: (Part(lambda name=name: calls.append(name), 1),) for name in row.stages}
        edits = figure5.whole_edits(stage, (3,), 1, "cpu", {})
        assert edits.keys() == row.edits.keys()
        assert calls[:7] == ["lazy encode", "context", *3 * ["lazy step"], "lazy decode", "blend"]


def test_tables_plot_and_flat_figures_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure5, "PIXART_1024", TINY)
    monkeypatch.setattr(figure5, "MODELS", (TINY, replace(TINY, canvas=256)))
    monkeypatch.setattr(figure5, "CROP", SMALLER)
    monkeypatch.setattr(figure5, "setting_of", lambda device, quick: CPU)
    figure5.main(["--output", str(tmp_path / "new"), "--repeat", "1"])
    report = json.loads((tmp_path / "new" / "figure5.json").read_text("utf-8"))
    assert all(report["figures"][f"end_to_end_{steps}_steps"] > 0 for steps in (20, 4))
    assert len(report["table"]) == 2 * len(figure5.PERCENT) and report["threads"] == 1
    assert (tmp_path / "new" / "figure5.png").stat().st_size > 1000
    assert "RegenerateCrop" in capsys.readouterr().out
