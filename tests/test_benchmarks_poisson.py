"""The benchmark of the blend: its direct solver is the paper's, and it runs; times are not asserted here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.sparse.linalg import spsolve
from test_poisson import MASKS, direct_solve

from benchmarks import poisson


@pytest.mark.parametrize("name", ["disc", "four borders", "many components", "random 60 %"])
def test_the_system_is_the_papers(name):
    hole = MASKS[name]
    rng = np.random.default_rng(0)
    f, g = (rng.uniform(0, 255, (2, *hole.shape)) for _ in range(2))
    matrix, rhs = poisson.system(f, g, hole)
    # float64 on both sides, but the unknowns are numbered and eliminated in another order
    np.testing.assert_allclose(spsolve(matrix, rhs).T, direct_solve(f, g, hole)[:, hole], atol=1e-8)


def test_table_plot_and_flat_figures_are_written(tmp_path, monkeypatch, capsys):
    small = poisson.measure(64, 1, "cpu")
    assert small.unknown == 20**2 and small.error_grey_levels < 0.02
    without = poisson.Row(2048, 1, 1.0)
    monkeypatch.setattr(poisson, "SIZES", (48, 1024, 2048))
    monkeypatch.setattr(poisson, "measure", lambda size, *_: {48: small, 2048: without}.get(size, poisson.Row(
        size, 400, 80.0, 2000.0, 700.0, 1e-3)))  # fmt: skip
    poisson.main(["--output", str(tmp_path)])
    report = json.loads((tmp_path / "poisson.json").read_text("utf-8"))
    assert report["figures"]["scipy_over_ours"] == 25 and report["figures"]["error_grey_levels"] < 0.02
    assert [row["size"] for row in report["table"]] == [64, 1024, 2048] and report["table"][-1]["scipy"] is None
    assert (tmp_path / "poisson.png").stat().st_size > 1000
    assert "grey levels" in capsys.readouterr().out
