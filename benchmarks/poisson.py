"""The Poisson blend against scipy's direct solver, and OpenCV's seamlessClone where it is installed: time and error.

    python -m benchmarks.poisson --output DIR [--device cpu] [--repeat 5] [--quick]

Prints a table and writes `poisson.png` and `poisson.json`. Pictures are white noise, the hardest content there is, with
a square hole of 10 % of the canvas. scipy solves for three channels, one by one; beside it, one factorisation for all.
Setting up its matrix is not counted, and above 1024 px it is left out, as it takes minutes. OpenCV solves another
problem (all of the rectangle around the hole, in 8 bits), so it has a time but no error.

On a CPU, times are processor time of one thread.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.sparse import csc_matrix, csr_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from lazydiff.core.poisson import poisson_blend

from .harness import Call, Harness, arguments, finish
from .subjects import square_mask

SIZES = (256, 512, 1024, 2048)
PERCENT = 10
DIRECT = 1024  # px, the largest canvas that scipy gets, and that of the figures


@dataclass(frozen=True)
class Row:
    """Times in milliseconds; None: not measured."""

    size: int  # px of the canvas
    unknown: int  # pixels
    ours: float
    scipy: float | None = None
    scipy_one_factorisation: float | None = None
    error_grey_levels: float | None = None  # ours against scipy, largest of all pixels
    opencv: float | None = None


def system(f: np.ndarray, g: np.ndarray, hole: np.ndarray) -> tuple[csc_matrix, np.ndarray]:
    """Equation 7 of Perez et al. 2003 as a matrix [n, n] and right-hand sides [n, C].

    f, g: [C, H, W] destination and source; hole: [H, W] bool
    """
    height, width = hole.shape
    n = int(hole.sum())
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(n)
    y, x = hole.nonzero()
    rows, columns, rhs, neighbours = [], [], np.zeros((n, len(f))), np.zeros(n)
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        inside = (0 <= y + dy) & (y + dy < height) & (0 <= x + dx) & (x + dx < width)
        p, q = (y[inside], x[inside]), (y[inside] + dy, x[inside] + dx)
        i, j, unknown = number[p], number[q], hole[q]
        neighbours[i] += 1
        rhs[i] += (g[:, p[0], p[1]] - g[:, q[0], q[1]] + np.where(unknown, 0, f[:, q[0], q[1]])).T
        rows.append(i[unknown])
        columns.append(j[unknown])
    off_diagonal = np.concatenate(rows), np.concatenate(columns)
    matrix = csr_matrix((-np.ones(len(off_diagonal[0])), off_diagonal), (n, n))
    matrix.setdiag(neighbours)
    return matrix.tocsc(), rhs


def opencv_clone(f: Tensor, g: Tensor, mask: Tensor) -> Call | None:
    """A call of seamlessClone on the same pictures, if OpenCV is there."""
    if importlib.util.find_spec("cv2") is None:
        return None
    cv2: Any = importlib.import_module("cv2")
    f8, g8, mask8 = ((255 * x[0].permute(1, 2, 0)).byte().cpu().numpy().copy() for x in (f, g, mask))
    y, x = mask8[..., 0].nonzero()
    centre = (int(x.min() + x.max() + 1) // 2, int(y.min() + y.max() + 1) // 2)
    return lambda: cv2.seamlessClone(g8, f8, mask8, centre, cv2.NORMAL_CLONE)


def measure(size: int, harness: Harness) -> Row:
    torch.manual_seed(0)
    f, g = (torch.rand(1, 3, size, size, device=harness.device) for _ in range(2))
    mask = square_mask(size, PERCENT).to(harness.device)
    calls: dict[str, Call] = {"ours": lambda: poisson_blend(f, g, mask)}
    error = None
    if size <= DIRECT:
        hole = mask[0, 0].bool().cpu().numpy()
        matrix, rhs = system(f[0].double().cpu().numpy(), g[0].double().cpu().numpy(), hole)
        ours = poisson_blend(f, g, mask)[0].cpu().numpy()[:, hole]
        error = 255 * float(abs(ours - spsolve(matrix, rhs).T).max())
        calls["scipy"] = lambda: [spsolve(matrix, channel) for channel in rhs.T]
        calls["scipy_one_factorisation"] = lambda: spsolve(matrix, rhs)
    if clone := opencv_clone(f, g, mask):
        calls["opencv"] = clone
    times = dict(zip(calls, harness.medians(list(calls.values())), strict=True))
    return Row(size, int(mask.sum()), error_grey_levels=error, **times)


def figures(rows: Sequence[Row]) -> dict[str, float]:
    row = next(row for row in rows if row.size == DIRECT)
    assert row.scipy is not None and row.scipy_one_factorisation is not None
    return {
        f"ms_{DIRECT}_at_{PERCENT}_percent": row.ours,
        "scipy_over_ours": row.scipy / row.ours,
        "scipy_one_factorisation_over_ours": row.scipy_one_factorisation / row.ours,
        "error_grey_levels": max(row.error_grey_levels for row in rows if row.error_grey_levels is not None),
    }


COLUMNS = ("ours", "scipy", "scipy_one_factorisation", "opencv")


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'px':>5} {'unknown':>8}" + "".join(f"{name:>25}" for name in COLUMNS) + "   error, grey levels"]
    for row in rows:
        cells = ("-" if getattr(row, name) is None else f"{getattr(row, name):.1f}" for name in COLUMNS)
        error = "-" if row.error_grey_levels is None else f"{row.error_grey_levels:.1e}"
        lines.append(f"{row.size:5d} {row.unknown:8d}" + "".join(f"{cell:>25}" for cell in cells) + f"   {error:>18}")
    return "\n".join(lines)


def plot(rows: Sequence[Row], title: str) -> Figure:
    """Time against size, log-log."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="px of the canvas", ylabel="ms per blend")
    for name in COLUMNS:
        points = [(row.size, getattr(row, name)) for row in rows if getattr(row, name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=name.replace("_", " "))
    finish(axes, [row.size for row in rows], title)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    harness = Harness.of(arguments(__doc__, "up to 1024 px", repeat=5).parse_args(argv))
    rows = [measure(size, harness) for size in (SIZES[:-1] if harness.quick else SIZES)]
    setting = f"white noise, hole of {PERCENT} %, three channels, float32"
    opencv = "not installed" if rows[0].opencv is None else importlib.import_module("cv2").__version__
    print(f"{setting}; {harness.conditions}, ms\n{table(rows)}")
    picture = plot(rows, f"{setting}\n{harness.conditions}")
    harness.write(
        "poisson", figures(rows), picture, setting=setting, opencv=opencv, table=[vars(row) for row in rows]
    )


if __name__ == "__main__":
    main()
